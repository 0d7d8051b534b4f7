/**
 * Partial parity logs, handed over in the middle of a write: what either side logged, the other recovers from, complete
 * and with any member missing.
 */
import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { assembleDevices, formArray } from '../../lib/array/form.ts';
import { logOn, superblockOn } from '../../lib/array/superblocks.ts';
import { seededRandom } from '../../lib/host.ts';
import { claimOf } from '../../lib/md/member.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../lib/units.ts';
import { cuts } from '../array/ppl-crash.ts';
import { CrashDisk, type Event, put, stillHost } from '../array/ppl-world.ts';
import { contentOf, forEach, type GuestArray, Lab, pack, scrubOf, sourcesOf } from './interop.ts';
import { kernelOrSkip } from './kernel.ts';

const CHUNK = 64 * KIB;
const DISK_BYTES = 4 * MIB;

type Sectors = Map<number, Uint8Array>;

/** What is written: a range of array sectors, each time with a value of its own. */
interface Write {
  readonly sector: number;
  readonly count: number;
}

/** A power cut of ours: images to be given to Linux, and what every array sector may be. */
interface Cut {
  readonly id: string;
  readonly images: readonly Sectors[];
  readonly missing: number | null;
  readonly allowed: readonly ReadonlySet<number>[];
  /** Array sectors whose content may be anything: written, on the member that is missing. */
  readonly isFree: (sector: number) => boolean;
  readonly imageCount: number;
}

function byteOf(index: number): number {
  return 1 + (index % 250);
}

/** Runs writes on disks that remember, and takes moments of it at random: after the log, within the rows. */
async function cutsOf(
  name: string,
  disks: number,
  layout: string,
  writes: readonly Write[][],
  seed: number,
): Promise<Cut[]> {
  const random = seededRandom(seed);
  const events: Event[] = [];
  const devices = Array.from({ length: disks }, (_, index) => new CrashDisk(index, DISK_BYTES, events));
  const array = await formArray(
    devices.map((device, index) => ({ device, name: `m${index}`, identity: `m${index}` })),
    {
      ...{ name, level: 5, chunk: CHUNK, layout, consistencyPolicy: 'ppl', assumeClean: true },
      ...{ host: stillHost(seed), heapBytes: 4 * MIB, autoSync: false, setName: name },
    },
  );
  const parity = array.layout;
  if (parity.kind !== 'parity') throw new Error('it is raid5');
  const sectors = array.limits.sizeBytes / SECTOR_BYTES;
  const base = new Uint8Array(array.limits.sizeBytes);
  for (let at = 0; at < base.byteLength; at += 1) base[at] = 251 + (Math.floor(at / SECTOR_BYTES) % 5);
  await array.write(0, base);
  await array.flush();
  const formed = events.length;
  const allowed = Array.from({ length: sectors }, (_, sector) => new Set([251 + (sector % 5)]));
  const found: Cut[] = [];
  const steps: { events: number; allowed: ReadonlySet<number>[] }[] = [];
  let value = 0;
  for (const together of writes) {
    await Promise.all(
      together.map(({ sector, count }) => {
        value += 1;
        for (let at = sector; at < sector + count; at += 1) allowed[at]?.add(byteOf(value));
        return array.write(sector * SECTOR_BYTES, new Uint8Array(count * SECTOR_BYTES).fill(byteOf(value)));
      }),
    );
    steps.push({ events: events.length, allowed: allowed.map((each) => new Set(each)) });
  }
  const blank = Array.from({ length: disks }, (): Sectors => new Map());
  const isDirty: boolean[] = [];
  let seen = 0;
  for (const { at, durable, pending } of cuts(events, formed, blank)) {
    const data = pending.filter(({ offsetBytes }) => offsetBytes >= 2 * MIB);
    isDirty[at] = data.length > 0;
    // Between the log and the end of the rows, once or twice for each write.
    if (data.length === 0 || random(3) > 0) continue;
    const images = durable.map((each) => new Map(each));
    for (const { disk, offsetBytes, bytes } of pending) {
      const half = Math.floor(bytes.byteLength / 2 / SECTOR_BYTES) * SECTOR_BYTES;
      const how = random(4);
      if (how === 0) continue;
      put(images[disk]!, offsetBytes, how === 1 && half > 0 ? bytes.subarray(0, half) : bytes);
    }
    const step = steps.find((each) => each.events >= at) ?? steps.at(-1)!;
    const missing = seen % (disks + 1) === disks ? null : seen % (disks + 1);
    const rowSectors = (parity.chunkBytes * parity.dataCount) / SECTOR_BYTES;
    const chunkSectors = parity.chunkBytes / SECTOR_BYTES;
    found.push({
      id: `${name}_${found.length}`,
      images,
      missing,
      allowed: step.allowed,
      isFree: (sector) =>
        parity.row(Math.floor(sector / rowSectors)).data[Math.floor((sector % rowSectors) / chunkSectors)] ===
          missing && step.allowed[sector]!.size > 1,
      imageCount: missing === null ? disks : disks - 1,
    });
    seen += 1;
  }
  return found;
}

function wrongSector(cut: Cut, content: Uint8Array): string | null {
  for (const [sector, allowed] of cut.allowed.entries()) {
    const bytes = content.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
    const [value = -1] = bytes;
    if (bytes.every((byte) => byte === value) && allowed.has(value)) continue;
    if (cut.isFree(sector)) continue;
    return `sector ${sector} is ${value}, not one of ${[...allowed]}`;
  }
  return null;
}

describe.runIf(kernelOrSkip())('partial parity logs', () => {
  let lab: Lab;
  beforeAll(() => {
    lab = new Lab('ppl');
  });
  afterAll(() => {
    lab.remove();
  });

  test('ours, cut off in the middle of writes, are recovered by Linux: nothing unwritten changes, whoever is missing', async () => {
    const shapes = [
      ['ls3', 3, 'left-symmetric'],
      ['la4', 4, 'left-asymmetric'],
      ['rs5', 5, 'right-symmetric'],
      ['pf4', 4, 'parity-first'],
    ] as const;
    const all: Cut[] = [];
    for (const [index, [name, disks, layout]] of shapes.entries()) {
      const random = seededRandom(100 + index);
      const rowSectors = ((disks - 1) * CHUNK) / SECTOR_BYTES;
      const writes = Array.from({ length: 14 }, (_, turn) =>
        Array.from({ length: turn % 3 === 2 ? 4 : 1 }, () => ({
          sector: random(rowSectors * 12),
          count: turn % 4 === 3 ? 1 + random(rowSectors * 2) : 1 + random(40),
        })),
      );
      all.push(...(await cutsOf(name, disks, layout, writes, 7 + index)).slice(0, 12));
    }
    let recovered = 0;
    const wrong: string[] = [];
    for (const group of pack(all)) {
      const arrays: (GuestArray & { cut: Cut })[] = group.map((cut) => {
        const present = cut.images.filter((_, index) => index !== cut.missing);
        const images = lab.images(present.map(() => DISK_BYTES / MIB));
        for (const [index, sectors] of present.entries()) {
          const bytes = Buffer.alloc(DISK_BYTES);
          for (const [sector, content] of sectors) bytes.set(content, sector * SECTOR_BYTES);
          writeFileSync(images[index]!, bytes);
        }
        return { id: cut.id, images, cut };
      });
      // One after the other: cuts of one array have one uuid.
      const look = `dd if=$MD of=/run/pool/$ID.out bs=1M status=none iflag=direct; state
        start_check; while read now <$SYS/sync_action; [ $now != idle ]; do sleep 0.05; done; end_check`;
      const answers = await lab.boot(
        arrays,
        forEach(
          arrays,
          `assemble --run $M; say resynced $(dmesg | grep -c "resync of RAID array $N"); ${look}; stop`,
        ),
      );
      for (const { id, cut } of arrays) {
        const about = answers.about(id);
        const out = join(lab.folder, 'pool', `${id}.out`);
        if (!existsSync(out)) throw new Error(answers.text);
        const content = readFileSync(out);
        const bad = wrongSector(cut, content);
        if (bad !== null) wrong.push(`${id}, ${cut.missing} missing: ${bad}\n${about}`);
        if (cut.missing === null) {
          if (answers.get(id, 'mismatches') !== '0') wrong.push(`${id}: mismatches\n${about}`);
          if (answers.get(id, 'resynced') !== '0') wrong.push(`${id}: resynced\n${about}`);
          recovered += 1;
        }
      }
    }
    expect(wrong).toEqual([]);
    expect(all.length).toBeGreaterThan(40);
    expect(recovered).toBeGreaterThan(5);
    console.log(
      `${all.length} power cuts of ours, ${lab.boots} boots; ${recovered} complete, the others degraded`,
    );
  });

  test("Linux's, the guest killed while it writes, are recovered by us: complete, and with each member missing", async () => {
    const shapes = [
      ['lls', 3, 'left-symmetric', '1.2'],
      ['lra', 4, 'right-asymmetric', '1.2'],
      ['lpl', 4, 'parity-last', '1.1'],
      ['lrs', 5, 'right-symmetric', '1.0'],
    ] as const;
    const wrong: string[] = [];
    let entries = 0;
    let dirty = 0;
    for (const round of [0, 1, 2]) {
      const arrays = shapes.map(([id, disks]) => ({
        id,
        disks,
        images: lab.images(new Array<number>(disks).fill(12)),
      }));
      // Only the first chunk of each row is ever written again: all others must be what they were.
      const create = (index: number): string => {
        const [, disks, layout, metadata] = shapes[index]!;
        return `create --level=5 --raid-devices=${disks} --chunk=64 --layout=${layout} --metadata=${metadata} --consistency-policy=ppl --assume-clean $M; fill 0`;
      };
      const writer = (disks: number, seed: number): string =>
        `perl -MFcntl -e 'srand(${seed}); $row = ${(disks - 1) * CHUNK}; sysopen M, $ARGV[0], O_WRONLY | O_SYNC or die;
          open P, "<", "/run/pool/bytes"; while (1) { $l = 4096 * (1 + int rand 8); sysseek P, 4096 * int rand 9000, 0; sysread P, $b, $l;
          sysseek M, $row * int(rand 60) + 4096 * int(rand(17 - $l / 4096)), 0; syswrite M, $b }' $MD &`;
      const script = [
        ...arrays.map(({ id }, index) => `use_${id}; ${create(index)}`),
        ...arrays.flatMap(({ id, disks }, index) =>
          [1, 2, 3].map((turn) => `use_${id}; ${writer(disks, 1000 * round + 10 * index + turn)}`),
        ),
        ...arrays.map(({ id }) => `use_${id}; say size $(size)`),
        `sleep 1.${round}; power-cut`,
      ].join('\n');
      const answers = await lab.boot(arrays, script);
      for (const { id, disks, images } of arrays) {
        const sizeBytes = Number(answers.get(id, 'size'));
        const rowBytes = (disks - 1) * CHUNK;
        for (const missing of [null, ...images.keys()]) {
          const copies = images.flatMap((path, index) => {
            if (index === missing) return [];
            const copy = `${path}.copy${index}`;
            copyFileSync(path, copy);
            return [copy];
          });
          const sources = await sourcesOf(copies);
          const superblock = await superblockOn(sources[0]!.device);
          if (superblock.resyncOffsetSectors === 0) dirty += 1;
          for (const { device } of missing === null ? sources : []) {
            const own = await superblockOn(device);
            const claim = claimOf(
              { version: shapes.find(([name]) => name === id)![3], superblock: own },
              device.limits.sizeBytes / SECTOR_BYTES,
            );
            const log = await logOn(device, claim);
            if (log?.says === 'all-but') entries += log.cells.length;
          }
          const { array } = await assembleDevices(sources, {
            name: id,
            cores: 1,
            run: true,
            autoSync: false,
          });
          const content = await contentOf(array);
          expect(content.byteLength).toBe(sizeBytes);
          for (let at = 0; at < sizeBytes; at += rowBytes) {
            const [from, to] = [at + CHUNK, at + rowBytes];
            if (Buffer.compare(content.subarray(from, to), lab.pool.subarray(from, to)) !== 0)
              wrong.push(
                `${id} of round ${round}, ${missing} missing: row ${at / rowBytes} has changed where nobody wrote`,
              );
          }
          if (missing === null) {
            if (array.state === 'resyncing') wrong.push(`${id} of round ${round}: a resync is due`);
            else if ((await scrubOf(array)) > 0)
              wrong.push(`${id} of round ${round}: ${array.mismatchCount} mismatches`);
          }
          await array.close();
        }
      }
    }
    expect(wrong).toEqual([]);
    expect(dirty).toBeGreaterThan(20);
    expect(entries).toBeGreaterThan(20);
    console.log(`12 arrays of Linux cut off, each started in all ways: ${entries} entries recovered`);
  });
});
