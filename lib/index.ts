/** The public names; nothing else is importable. */
export {
  type ArrayState,
  RaidArray,
  type RaidArrayOptions,
  type ScrubProgress,
} from './array/array.ts';
export {
  type AssembleOptions,
  assembleArray,
  type CreateOptions,
  createArray,
  growArray,
  listArrays,
  MANIFEST_NAME,
  type Manifest,
  type OpenOptions,
  openArray,
  openMember,
  readManifest,
  type Scrubbed,
  updateManifest,
  writeManifest,
} from './array/folder.ts';
export type { AssemblyReport } from './array/form.ts';
export type { GrowOptions } from './array/grow.ts';
export {
  examineMember,
  type Inspection,
  inspectArray,
  type MemberExamination,
  sparedFailures,
} from './array/inspect.ts';
export type { ErrorCounts, Member, MemberState } from './array/members.ts';
export { hasPaths, lintSources, openPaths, pathsOf } from './array/paths.ts';
export { CONF_NAME, pathsStatus, readMultipathConf, sanOf, throughSan } from './array/san.ts';
export { whatIsOn } from './array/signatures.ts';
export { ArraySnapshots, type CloneInfo, clonesIn, SNAPSHOT_STORE } from './array/snapshots.ts';
export {
  isThere,
  type MemberDevice,
  memberNames,
  openNamed,
  openSource,
  placeOf,
  type SourceOptions,
  sourceIn,
  wholeSource,
} from './array/source.ts';
export type { ArrayStatus, MemberStatus, SnapshotStatus, SyncStatus } from './array/status.ts';
export type { SyncProgress } from './array/sync.ts';
export type { ChangedSince, CreateBackupOptions, CreateProgress } from './backup/create.ts';
export {
  type ExportImageOptions,
  exportImage,
  type ImageFormat,
  imageFormats,
  writeNewFile,
} from './backup/export.ts';
export { isObjectStore, openStore, type StoreCredentials } from './backup/location.ts';
export { type Holder, processWitness, type Witness } from './backup/lock.ts';
export { BackupDevice } from './backup/mount.ts';
export type { PruneOptions, PruneReport } from './backup/prune.ts';
export type { Backing } from './backup/qcow2.ts';
export type { Backup } from './backup/record.ts';
export type { RepairReport } from './backup/repair.ts';
export {
  type CreateRepositoryOptions,
  type HoldOptions,
  type OpenBackupOptions,
  type OpenRepositoryOptions,
  Repository,
  type RestoreBackupOptions,
} from './backup/repository.ts';
export type { RestoreOptions, RestoreProgress } from './backup/restore.ts';
export type { KeepRules } from './backup/retain.ts';
export type { Redundancy } from './backup/settings.ts';
export type { Store, StoredFile } from './backup/store.ts';
export type { Damage, LostBackup, VerifyOptions, VerifyReport } from './backup/verify.ts';
export { CONTROL_SOCKET, ControlClient, ControlServer } from './control/control.ts';
export { type Delay, DelayDevice, type Hold } from './device/delay.ts';
export {
  type Buffers,
  Device,
  type DirectAccess,
  type Extent,
  type Limits,
  type WriteOptions,
  type ZeroOptions,
} from './device/device.ts';
export {
  type Fault,
  FaultDevice,
  type FaultRule,
  type FaultStatus,
  type FaultWhen,
} from './device/fault.ts';
export { FileDevice } from './device/file.ts';
export { MemoryDevice } from './device/memory.ts';
export { OverlayDevice } from './device/overlay.ts';
export { type Partition, PartitionDevice, readPartitions } from './device/partition.ts';
export { RecordDevice, type RecordEntry, type RecordOptions } from './device/record.ts';
export { findRescueMap, RescuedDevice, type RescueMap } from './device/rescued.ts';
export { SliceDevice } from './device/slice.ts';
export type { Crew } from './engine/crew.ts';
export type { DriverKind } from './engine/engine.ts';
export { type ErrorCode, errorCodes, exitCodeOf, RaidError, type Reaction } from './errors.ts';
export { type Host, realHost, seededRandom } from './host.ts';
export type { Geometry, Level } from './layout/geometry.ts';
export { drawLayout, formatMap, type LayoutMap, type MapCell, type MapRow } from './layout/map.ts';
export {
  type Conf,
  type Diagnostic,
  describeDiagnostic,
  type LunFacts,
  parseConf,
  readConf,
  type Settings,
  settingsFor,
} from './multipath/conf.ts';
export {
  MultipathDevice,
  type MultipathOptions,
  type MultipathStatus,
  type Path,
  type PathConnection,
  type PathState,
  type PathStatus,
  pathOver,
} from './multipath/device.ts';
export {
  type ComponentKind,
  type ComponentStatus,
  type Condition,
  Fabric,
  type FabricLun,
  type FabricOptions,
  type LinkState,
} from './multipath/fabric.ts';
export type { LatencySummary } from './multipath/latency.ts';
export { type LintLun, type LintReport, lintConf, lintManifest } from './multipath/lint.ts';
export {
  componentNames,
  componentsNamed,
  defaultPlan,
  type FabricPlan,
  planWith,
  San,
  type SanLun,
  type SanPath,
  type SanStatus,
} from './multipath/san.ts';
export type { AluaState, PathFacts } from './multipath/select.ts';
export {
  checkedTopology,
  defaultTopology,
  type FabricPath,
  failuresSurvived,
  type LunReport,
  longestStallMs,
  pathsTo,
  reportOn,
  singlePointsOfFailure,
  type Topology,
} from './multipath/topology.ts';
export { NbdDevice, type NbdOptions } from './nbd/client.ts';
export type { ExportOptions } from './nbd/export.ts';
export {
  isLoopback,
  type NbdEvent,
  NbdServer,
  type NbdServerOptions,
  type NbdTls,
  serveNbd,
} from './nbd/server.ts';
export { isUri, type NbdUri, parseNbdUri } from './nbd/uri.ts';
export { describeKernels, type KernelDescription } from './parity/select.ts';
export { explain } from './plan/explain.ts';
export { compileHealth } from './plan/health.ts';
export { planRead, planWrite } from './plan/planner.ts';
export { Clock as SimClock, Process as SimProcess } from './sim/clock.ts';
export {
  Disk as SimDisk,
  type DiskDevice as SimDiskDevice,
  type DiskFault as SimDiskFault,
} from './sim/disk.ts';
export { type Shrunk, shrink as shrinkCase } from './sim/shrink.ts';
export {
  parseCase,
  runAlone as runCase,
  type SavedCase,
  type SimulateOptions,
  type SimulateStep,
  saveCase,
  simulate,
} from './sim/simulate.ts';
export {
  type Case as SimCase,
  type FaultName as SimFault,
  type Mode as SimMode,
  pickCase,
} from './sim/swarm.ts';
export type { Failure as SimFailure, Outcome as SimOutcome, Tally as SimTally } from './sim/world.ts';
export { SnapshotDevice } from './snapshot/device.ts';
export {
  type ChangedRange,
  type RollbackProgress,
  type SnapshotInfo,
  SnapshotOrigin,
  type SnapshotStoreOptions,
  type SnapshotUsage,
} from './snapshot/origin.ts';
export { formatSize, parseSize } from './units.ts';
