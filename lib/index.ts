/** The public names; nothing else is importable. */
export {
  type ArrayState,
  type ErrorCounts,
  type Member,
  type MemberState,
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
  writeManifest,
} from './array/folder.ts';
export type { AssemblyReport } from './array/form.ts';
export type { GrowOptions } from './array/grow.ts';
export {
  examineMember,
  type Inspection,
  inspectArray,
  type MemberExamination,
  memberNames,
} from './array/inspect.ts';
export { whatIsOn } from './array/signatures.ts';
export type { ArrayStatus, MemberStatus, SyncStatus } from './array/status.ts';
export type { SyncProgress } from './array/sync.ts';
export {
  type Buffers,
  Device,
  type DirectAccess,
  type Extent,
  type Limits,
  type WriteOptions,
  type ZeroOptions,
} from './device/device.ts';
export { FileDevice } from './device/file.ts';
export { MemoryDevice } from './device/memory.ts';
export { OverlayDevice } from './device/overlay.ts';
export { SliceDevice } from './device/slice.ts';
export type { DriverKind } from './engine/engine.ts';
export { type ErrorCode, errorCodes, exitCodeOf, RaidError, type Reaction } from './errors.ts';
export { type Host, realHost, seededRandom } from './host.ts';
export type { Geometry, Level } from './layout/geometry.ts';
export { drawLayout, formatMap, type LayoutMap, type MapCell, type MapRow } from './layout/map.ts';
export { describeKernels, type KernelDescription } from './parity/select.ts';
export { explain } from './plan/explain.ts';
export { compileHealth } from './plan/health.ts';
export { planRead, planWrite } from './plan/planner.ts';
export { formatSize, parseSize } from './units.ts';
