/**
 * One member's metadata, told field by field as `mdadm --examine` tells it, so that what people have learnt to read,
 * and the scripts that read it, go on working; and as plain data. Times are UTC, unlike mdadm's, which are local: a pure
 * function has no zone.
 *
 * What mdadm calls "Unused Space: before" counts from 36 KiB behind the superblock, room that the kernel may take for
 * a bitmap, or from the end of whatever lies beyond that.
 */
import { raid5Layouts, raid6Layouts } from '../layout/geometry.ts';
import { levelFromNumber, raid10Copies } from '../layout/levels.ts';
import { type BadRange, decodeBadBlocks } from './badblocks.ts';
import { type BitmapSuperblock, bitCountOf, bitmapAreaBytes } from './bitmap.ts';
import { arraySectorsOf } from './levels.ts';
import type { FoundSuperblock } from './member.ts';
import type { Time } from './record.ts';
import {
  bitmapOffsetOf,
  checksumOf,
  type Feature,
  features,
  hasFeature,
  memberFlags,
  ownRoleOf,
  pplAreaOf,
  ROLE_FAULTY,
  ROLE_JOURNAL,
  ROLE_SPARE,
  ROLES_MAX,
  type Superblock1,
} from './superblock1.ts';
import {
  checksum090Of,
  type Disk090,
  diskStates090,
  resyncOffset090Of,
  type Superblock090,
  states090,
} from './superblock090.ts';

export interface Examined {
  readonly found: FoundSuperblock;
  readonly memberSectors: number;
  /** The bitmap's superblock, where one was read: only it knows how long the bitmap is. */
  readonly bitmap?: BitmapSuperblock | null;
}

export interface ExamineOptions {
  /** Names of this host's arrays are marked "(local to host ...)". */
  readonly host?: string;
}

/** What `mdadm --examine NAME` prints, from the line after the name on. */
export function examineText(examined: Examined, options: ExamineOptions = {}): string {
  const { found } = examined;
  const lines = found.version === '0.90' ? lines090(found.superblock) : lines1(examined, found, options);
  return `${lines.join('\n')}\n`;
}

/** The same as data: md's own names in camel case, sectors, and null where a field does not count. */
export function examineJson({ found, memberSectors }: Examined): Record<string, unknown> {
  if (found.version === '0.90') return json090(found.superblock);
  const { superblock: sb, version } = found;
  const checksum = checksumOf(sb.bytes);
  const ppl = pplAreaOf(sb);
  return {
    version,
    features: Object.entries(features)
      .filter(([, bit]) => (sb.featureMap & bit) !== 0)
      .map(([name]) => name),
    arrayUuid: sb.setUuid,
    arrayName: sb.setName,
    createdAt: isoTime(sb.ctime),
    level: levelFromNumber(sb.level) ?? sb.level,
    layout: layoutName(sb.level, sb.layout),
    raidDevices: sb.raidDisks,
    chunkSectors: sb.chunkSectors,
    sizeSectors: sb.sizeSectors,
    arraySectors:
      sb.level > 0 ? arraySectorsOf({ ...sb, hasRaid0Layout: hasFeature(sb, 'RAID0_LAYOUT') }) : null,
    memberSectors,
    dataOffsetSectors: sb.dataOffsetSectors,
    dataSectors: sb.dataSectors,
    superSector: sb.superSector,
    state: sb.resyncOffsetSectors === Infinity ? 'clean' : 'active',
    resyncOffsetSectors: positionOf(sb.resyncOffsetSectors),
    recoveryOffsetSectors: hasFeature(sb, 'RECOVERY_OFFSET') ? positionOf(sb.recoveryOffsetSectors) : null,
    reshapePositionSectors: hasFeature(sb, 'RESHAPE') ? positionOf(sb.reshapePositionSectors) : null,
    bitmapOffsetSectors: bitmapOffsetOf(sb),
    ppl: ppl === null ? null : { offsetSectors: ppl.offsetSectors, lengthSectors: ppl.lengthSectors },
    badBlockLog:
      sb.bblogSectors === 0 ? null : { offsetSectors: sb.bblogOffsetSectors, lengthSectors: sb.bblogSectors },
    deviceUuid: sb.deviceUuid,
    deviceNumber: sb.descriptor,
    correctedReads: sb.correctedReads,
    role: roleName(ownRoleOf(sb)),
    roles: sb.devRoles.slice(0, sb.devRoles.findLastIndex((role) => role !== ROLE_SPARE) + 1).map(roleName),
    writeMostly: (sb.flags & memberFlags.WRITE_MOSTLY) !== 0,
    failfast: (sb.flags & memberFlags.FAILFAST) !== 0,
    updatedAt: isoTime(sb.utime),
    events: sb.events,
    checksum: hex(checksum.stored),
    checksumCorrect: checksum.stored === checksum.computed,
  };
}

/** What `mdadm --examine-bitmap` prints below the file name. `dirty` is the number of set bits. */
export function examineBitmapText(bitmap: BitmapSuperblock, dirty: number): string {
  const bits = bitCountOf(bitmap.syncSectors, bitmap.chunkBytes);
  const percent = bits === 0 ? 0 : (dirty * 100) / bits;
  const lines = [
    `           Magic : ${hex(0x6d746962)}`,
    `         Version : ${bitmap.version}`,
    `            UUID : ${bitmap.uuid}`,
    `          Events : ${bitmap.events}`,
    `  Events Cleared : ${bitmap.eventsCleared}`,
    `           State : ${(bitmap.state & 2) === 0 ? 'OK' : 'Out of date'}`,
    `       Chunksize : ${chunkText(bitmap.chunkBytes)}`,
    `          Daemon : ${bitmap.daemonSleepSeconds}s flush period`,
    `      Write Mode : ${bitmap.writeBehind === 0 ? 'Normal' : `Allow write behind, max ${bitmap.writeBehind}`}`,
    `       Sync Size : ${Math.floor(bitmap.syncSectors / 2)}${humanSize(bitmap.syncSectors * 512)}`,
    `          Bitmap : ${bits} bits (chunks), ${dirty} dirty (${percent.toFixed(1)}%)`,
  ];
  return `${lines.join('\n')}\n`;
}

/** What `mdadm --examine-badblocks NAME` prints; `bytes` is the log, where the member has one that counts. */
export function examineBadBlocksText(
  name: string,
  superblock: Superblock1,
  log: Uint8Array,
  memberSectors: number,
): string {
  if (superblock.bblogSectors === 0) return `No bad-blocks list configured on ${name}\n`;
  const ranges: readonly BadRange[] = hasFeature(superblock, 'BADBLOCKS')
    ? decodeBadBlocks(log, superblock.bblogShift, memberSectors)
    : [];
  if (ranges.length === 0) return `Bad-blocks list is empty in ${name}\n`;
  const rows = ranges.map(
    ({ fromSector, lengthSectors }) => `${String(fromSector).padStart(20)} for ${lengthSectors} sectors\n`,
  );
  return `Bad-blocks on ${name}:\n${rows.join('')}`;
}

function lines1(
  { memberSectors, bitmap }: Examined,
  found: Exclude<FoundSuperblock, { version: '0.90' }>,
  options: ExamineOptions,
): readonly string[] {
  const { superblock: sb, version } = found;
  const has = (feature: Feature): boolean => hasFeature(sb, feature);
  const lines: string[] = [];
  const say = (label: string, text: string | number): void => {
    lines.push(`${label.padStart(15)} : ${text}`);
  };
  const local = options.host !== undefined && sb.setName.startsWith(`${options.host}:`);
  say('Magic', hex(0xa92b4efc));
  say('Version', version);
  say('Feature Map', `0x${hex(sb.featureMap)}`);
  say('Array UUID', sb.setUuid);
  say('Name', printable(sb.setName) + (local ? `  (local to host ${options.host})` : ''));
  if (sb.ctime.seconds > 0) say('Creation Time', timeText(sb.ctime));
  say('Raid Level', levelFromNumber(sb.level) ?? '-unknown-');
  say('Raid Devices', sb.raidDisks);
  lines.push('');
  say('Avail Dev Size', `${sb.dataSectors} sectors${humanSize(sb.dataSectors * 512)}`);
  if (sb.level !== 0) {
    const kib = examineArrayKib(sb);
    if (kib !== null) say('Array Size', `${kib} KiB${humanSize(kib * 1024)}`);
    if (sb.sizeSectors !== sb.dataSectors) {
      say('Used Dev Size', `${sb.sizeSectors} sectors${humanSize(sb.sizeSectors * 512)}`);
    }
  }
  if (sb.dataOffsetSectors !== 0) say('Data Offset', `${sb.dataOffsetSectors} sectors`);
  if (has('NEW_OFFSET')) say('New Offset', `${sb.dataOffsetSectors + sb.newOffsetSectors} sectors`);
  say('Super Offset', `${sb.superSector} sectors`);
  if (has('RECOVERY_OFFSET')) say('Recovery Offset', `${sb.recoveryOffsetSectors} sectors`);
  if (!has('NEW_OFFSET')) {
    const unused = unusedSpace(sb, memberSectors, bitmap ?? null);
    const some = unused.before !== 0 || unused.after !== 0;
    if (some) say('Unused Space', `before=${unused.before} sectors, after=${unused.after} sectors`);
  }
  say('State', sb.resyncOffsetSectors === Infinity ? 'clean' : 'active');
  say('Device UUID', sb.deviceUuid);
  lines.push('');
  const bitmapOffset = bitmapOffsetOf(sb);
  const ppl = pplAreaOf(sb);
  if (bitmapOffset !== null) say('Internal Bitmap', `${bitmapOffset} sectors from superblock`);
  if (ppl !== null) {
    say('PPL', `${ppl.lengthSectors} sectors at offset ${ppl.offsetSectors} sectors from superblock`);
  }
  if (has('RESHAPE')) lines.push(...reshapeLines(sb));
  say('Update Time', timeText(sb.utime));
  if (sb.bblogSectors !== 0 && sb.bblogOffsetSectors !== 0) {
    const present = has('BADBLOCKS') ? ' - bad blocks present.' : '';
    say(
      'Bad Block Log',
      `${sb.bblogSectors * 64} entries available at offset ${sb.bblogOffsetSectors} sectors${present}`,
    );
  }
  const checksum = checksumOf(sb.bytes);
  const right = checksum.stored === checksum.computed;
  say('Checksum', `${hex(checksum.stored)} - ${right ? 'correct' : `expected ${hex(checksum.computed)}`}`);
  say('Events', sb.events);
  lines.push('');
  const layout = layoutName(sb.level, sb.layout);
  if (layout !== null && (sb.level !== 0 || has('RAID0_LAYOUT'))) say('Layout', layout);
  if ([0, 4, 5, 6, 10].includes(sb.level)) say('Chunk Size', kibText(sb.chunkSectors));
  if (sb.level === -1) say('Rounding', kibText(sb.chunkSectors));
  lines.push('');
  lines.push(`   Device Role : ${roleText(sb)}`);
  lines.push(`   Array State : ${arrayState(sb)} ('A' == active, '.' == missing, 'R' == replacing)`);
  return lines;
}

function roleText(sb: Superblock1): string {
  const role = ownRoleOf(sb);
  if (role === ROLE_JOURNAL) return 'Journal';
  if (role >= ROLE_FAULTY) return 'spare';
  return `${hasFeature(sb, 'REPLACEMENT') ? 'Replacement' : 'Active'} device ${role}`;
}

function reshapeLines(sb: Superblock1): readonly string[] {
  const lines: string[] = [];
  const say = (label: string, text: string | number): void => {
    lines.push(`${label.padStart(15)} : ${text}`);
  };
  const kib = Math.floor(sb.reshapePositionSectors / 2);
  say("Reshape pos'n", `${kib}${humanSize(kib * 1024)}`);
  if (sb.deltaDisks !== 0)
    say('Delta Devices', `${sb.deltaDisks} (${sb.raidDisks - sb.deltaDisks}->${sb.raidDisks})`);
  if (sb.newLevel !== sb.level) say('New Level', levelFromNumber(sb.newLevel) ?? '-unknown-');
  if (sb.newLayout !== sb.layout) say('New Layout', layoutName(sb.level, sb.newLayout) ?? '-unknown-');
  if (sb.newChunkSectors !== sb.chunkSectors) say('New Chunksize', kibText(sb.newChunkSectors));
  lines.push('');
  return lines;
}

/** mdadm does not round to chunks here, and so neither do we. */
function examineArrayKib(sb: Superblock1): number | null {
  const kib = sb.sizeSectors / 2;
  switch (sb.level) {
    case 1:
      return Math.floor(kib);
    case 4:
    case 5:
      return Math.floor(kib * (sb.raidDisks - 1));
    case 6:
      return Math.floor(kib * (sb.raidDisks - 2));
    case 10: {
      const { near, far } = raid10Copies(sb.layout);
      return near * far === 0 ? null : Math.floor((kib * sb.raidDisks) / (near * far));
    }
    default:
      return null;
  }
}

function unusedSpace(
  sb: Superblock1,
  memberSectors: number,
  bitmap: BitmapSuperblock | null,
): { readonly before: number; readonly after: number } {
  const isJournal = ownRoleOf(sb) === ROLE_JOURNAL;
  const used = sb.level > 0 && !isJournal ? sb.sizeSectors : sb.dataSectors;
  const dataEnd = sb.dataOffsetSectors + used;
  const bitmapOffset = bitmapOffsetOf(sb);
  const ppl = pplAreaOf(sb);
  const bblog = sb.bblogSectors === 0 ? null : sb.bblogOffsetSectors;
  const ends: number[] = [];
  if (sb.superSector > sb.dataOffsetSectors) {
    for (const offset of [bitmapOffset, ppl?.offsetSectors ?? null, bblog]) {
      if (offset !== null && offset < 0) ends.push(sb.superSector + offset);
    }
    return { before: sb.dataOffsetSectors, after: Math.min(sb.superSector, ...ends) - dataEnd };
  }
  if (bitmapOffset !== null && bitmap !== null) {
    ends.push(sb.superSector + bitmapOffset + bitmapAreaBytes(bitmap.syncSectors, bitmap.chunkBytes) / 512);
  }
  if (ppl !== null) ends.push(sb.superSector + ppl.offsetSectors + ppl.lengthSectors);
  if (bblog !== null && sb.superSector + bblog < sb.dataOffsetSectors) {
    ends.push(sb.superSector + bblog + sb.bblogSectors);
  }
  const earliest = Math.max(sb.superSector + 72, ...ends);
  return { before: sb.dataOffsetSectors - earliest, after: memberSectors - dataEnd };
}

/** One letter for each slot; during a reshape that shrinks, also for the old ones. */
function arrayState(sb: Superblock1): string {
  const shrinking = hasFeature(sb, 'RESHAPE') && sb.deltaDisks < 0 ? -sb.deltaDisks : 0;
  // A forged raid_disks may be 2^32: nobody has more slots than the table has entries.
  const slots = Math.min(sb.raidDisks + shrinking, ROLES_MAX);
  let state = '';
  for (let slot = 0; slot < slots; slot += 1) {
    const count = sb.devRoles.filter((role) => role === slot).length;
    state += ['.', 'A', 'R'][count] ?? '?';
  }
  return state;
}

function lines090(sb: Superblock090): readonly string[] {
  const lines: string[] = [];
  const say = (label: string, text: string | number): void => {
    lines.push(`${label.padStart(15)} : ${text}`);
  };
  const clean = (sb.state & states090.CLEAN) !== 0;
  say('Magic', hex(0xa92b4efc));
  say('Version', `0.${sb.minorVersion}.00`);
  say('UUID', sb.setUuid);
  say('Creation Time', timeText({ seconds: sb.ctimeSeconds, microseconds: 0 }));
  say('Raid Level', levelFromNumber(sb.level) ?? '-unknown-');
  if (sb.level > 0) {
    say('Used Dev Size', `${sb.sizeKib}${humanSize(sb.sizeKib * 1024)}`);
    const data = { 1: 1, 4: sb.raidDisks - 1, 5: sb.raidDisks - 1, 6: sb.raidDisks - 2 }[sb.level] ?? null;
    const copies = raid10Copies(sb.layout);
    const kib =
      sb.level === 10 ? (sb.sizeKib * sb.raidDisks) / (copies.near * copies.far) : sb.sizeKib * (data ?? 0);
    if (data !== null || sb.level === 10) say('Array Size', `${Math.floor(kib)}${humanSize(kib * 1024)}`);
  }
  say('Raid Devices', sb.raidDisks);
  say('Total Devices', sb.nrDisks);
  say('Preferred Minor', sb.preferredMinor);
  lines.push('');
  say('Update Time', timeText({ seconds: sb.utimeSeconds, microseconds: 0 }));
  say('State', clean ? 'clean' : 'active');
  if ((sb.state & states090.BITMAP) !== 0) say('Internal Bitmap', 'present');
  say('Active Devices', sb.activeDisks);
  say('Working Devices', sb.workingDisks);
  say('Failed Devices', sb.failedDisks);
  say('Spare Devices', sb.spareDisks);
  const checksum = checksum090Of(sb.bytes);
  const right = checksum.stored === checksum.computed;
  say('Checksum', `${hex(checksum.stored)} - ${right ? 'correct' : `expected ${hex(checksum.computed)}`}`);
  say('Events', sb.events);
  lines.push('');
  const layout = layoutName(sb.level, sb.layout);
  if ((sb.level === 5 || sb.level === 6 || sb.level === 10) && layout !== null) say('Layout', layout);
  if ([0, 4, 5, 6, 10].includes(sb.level)) say('Chunk Size', kibText(sb.chunkBytes / 512));
  lines.push('', '      Number   Major   Minor   RaidDevice State');
  lines.push(diskLine('this', sb.thisDisk), '');
  for (const [index, disk] of sb.disks.entries()) {
    if (index < sb.raidDisks || disk.major !== 0 || disk.minor !== 0)
      lines.push(diskLine(`${index}`.padStart(4), disk));
  }
  return lines;
}

function diskLine(label: string, disk: Disk090): string {
  const column = (value: number, width: number): string => String(value).padStart(width);
  const numbers = `${column(disk.number, 6)}${column(disk.major, 8)}${column(disk.minor, 9)}${column(disk.slot, 9)}`;
  const { FAULTY, ACTIVE, SYNC, REMOVED } = diskStates090;
  const words: string[] = [];
  if ((disk.state & FAULTY) !== 0) words.push('faulty');
  if ((disk.state & ACTIVE) !== 0) words.push('active');
  if ((disk.state & SYNC) !== 0) words.push('sync');
  if ((disk.state & REMOVED) !== 0) words.push('removed');
  if ((disk.state & (FAULTY | ACTIVE | SYNC | REMOVED)) === 0) words.push('spare');
  return `${label.padEnd(4)}${numbers}      ${words.join(' ')}`;
}

function json090(sb: Superblock090): Record<string, unknown> {
  const checksum = checksum090Of(sb.bytes);
  return {
    version: '0.90',
    arrayUuid: sb.setUuid,
    createdAt: isoTime({ seconds: sb.ctimeSeconds, microseconds: 0 }),
    level: levelFromNumber(sb.level) ?? sb.level,
    layout: layoutName(sb.level, sb.layout),
    raidDevices: sb.raidDisks,
    chunkSectors: sb.chunkBytes / 512,
    sizeSectors: sb.sizeKib * 2,
    state: (sb.state & states090.CLEAN) !== 0 ? 'clean' : 'active',
    resyncOffsetSectors: positionOf(resyncOffset090Of(sb)),
    deviceNumber: sb.thisDisk.number,
    disks: sb.disks.slice(0, Math.max(sb.nrDisks, sb.raidDisks)),
    updatedAt: isoTime({ seconds: sb.utimeSeconds, microseconds: 0 }),
    events: sb.events,
    checksum: hex(checksum.stored),
    checksumCorrect: checksum.stored === checksum.computed,
  };
}

/** mdadm's name, or null where the level has no layouts. */
export function layoutName(level: number, layout: number): string | null {
  const named = (table: Readonly<Record<string, number>>): string =>
    Object.keys(table).find((name) => table[name] === layout) ?? '-unknown-';
  switch (level) {
    case 0:
      return { 0: 'dangerous', 1: 'original', 2: 'alternate' }[layout] ?? '-unknown-';
    case 5:
      return named(raid5Layouts);
    case 6:
      return named(raid6Layouts);
    case 10: {
      const { near, far, offset } = raid10Copies(layout);
      const words: string[] = [];
      if (near !== 1) words.push(`near=${near}`);
      if (far !== 1) words.push(`${offset ? 'offset' : 'far'}=${far}`);
      return words.length === 0 ? 'NO REDUNDANCY' : words.join(', ');
    }
    default:
      return null;
  }
}

function roleName(role: number): number | string {
  if (role === ROLE_SPARE) return 'spare';
  if (role === ROLE_FAULTY) return 'faulty';
  return role === ROLE_JOURNAL ? 'journal' : role;
}

function positionOf(sectors: number): number | 'all' {
  return sectors === Infinity ? 'all' : sectors;
}

function hex(value: number): string {
  return (value >>> 0).toString(16);
}

function kibText(sectors: number): string {
  return `${Math.floor(sectors / 2)}K`;
}

/** Superblocks come from strangers: a name may hold terminal escapes. */
function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not reach a terminal
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}

function chunkText(bytes: number): string {
  const units = ['bytes', 'KB', 'MB', 'GB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value} ${units[unit]}`;
}

/** ` (11.98 MiB 12.57 MB)`, rounded to nearest; nothing below 5000 KiB. */
function humanSize(bytes: number): string {
  if (bytes < 5000 * 1024) return '';
  const [binary, decimal, prefix] =
    bytes < 2 * 2 ** 30
      ? [2 ** 20, 1e6, 'M']
      : bytes < 2 * 2 ** 40
        ? [2 ** 30, 1e9, 'G']
        : [2 ** 40, 1e12, 'T'];
  const hundredths = (unit: number): string =>
    (Math.floor((Math.floor((bytes * 200) / unit) + 1) / 2) / 100).toFixed(2);
  return ` (${hundredths(binary)} ${prefix}iB ${hundredths(decimal)} ${prefix}B)`;
}

const days = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];
const months = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/** As C's ctime writes it, in UTC. A forged time may lie beyond what a Date can say. */
function timeText(time: Time): string {
  const date = new Date(time.seconds * 1000);
  if (Number.isNaN(date.getTime())) return `${time.seconds} s after 1970`;
  const clock = date.toISOString().match(/T(\d\d:\d\d:\d\d)/)?.[1];
  const day = String(date.getUTCDate()).padStart(2);
  return `${days[date.getUTCDay()]} ${months[date.getUTCMonth()]} ${day} ${clock} ${date.getUTCFullYear()}`;
}

function isoTime(time: Time): string | null {
  const date = new Date(time.seconds * 1000);
  return Number.isNaN(date.getTime()) ? null : date.toISOString();
}
