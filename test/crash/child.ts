/**
 * The process that is killed: opens an array of image files, writes to it, fails and brings back members, and writes
 * down each request before it makes it and each answer when it has it. It never ends by itself. What it is to do comes
 * as JSON in its only argument. Run from dist, as a program.
 */
import { openSync, writeSync } from 'node:fs';
import type { RaidArray } from '../../lib/array/array.ts';
import { assembleDevices, type Source } from '../../lib/array/form.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { RaidError } from '../../lib/errors.ts';
import { realHost, seededRandom } from '../../lib/host.ts';
import { MIB } from '../../lib/units.ts';
import { formatLine, type Line, SECTOR_BYTES, sectorsOfWrite } from './history.ts';

export interface Task {
  readonly paths: readonly string[];
  readonly historyPath: string;
  readonly seed: number;
  readonly firstId: number;
  readonly cores: number;
  /** Whether members fail and come back. */
  readonly changes: boolean;
  readonly force: boolean;
}

const task = JSON.parse(process.argv[2] ?? '') as Task;
const random = seededRandom(task.seed);
// A file, and synchronous: what is in it when the kill comes is in it.
const history = openSync(task.historyPath, 'a');
const tell = (line: Line): void => {
  writeSync(history, formatLine(line));
};
const pause = (ms: number): Promise<void> => realHost.sleep(ms);

let nextId = task.firstId;

async function writer(array: RaidArray): Promise<never> {
  const sectors = array.limits.sizeBytes / SECTOR_BYTES;
  for (;;) {
    const kind = random(100);
    if (kind < 2) {
      // Long enough that the array becomes clean, or nearly.
      await pause(150 + random(150));
    } else if (kind < 8) {
      await array.flush();
    } else {
      const count = random(8) === 0 ? 1 + random(512) : 1 + random(24);
      const isHot = random(2) === 0;
      const sector = random(isHot ? Math.min(sectors - count, 2048) : sectors - count);
      const id = nextId;
      nextId += 1;
      const bytes = sectorsOfWrite(id, sector, count);
      tell({ event: 'write', id, sector, count });
      await array.write(sector * SECTOR_BYTES, bytes, { fua: kind < 12 });
      tell({ event: 'done', id });
    }
    if (random(4) === 0) await pause(random(3));
  }
}

/** Members fail by hand, come back by the bitmap or as new disks, and are replaced. */
async function changer(array: RaidArray, loose: string[]): Promise<never> {
  for (;;) {
    await pause(random(60));
    try {
      await change(array, loose);
    } catch (error) {
      // A change may be refused, because of another that is under way; that is not for us to judge.
      if (!(error instanceof RaidError)) throw error;
      tell({ event: 'note', text: `refused: ${error.code} ${error.message}` });
    }
  }
}

async function change(array: RaidArray, loose: string[]): Promise<void> {
  const faulty = array.members.find(({ state }) => state.state === 'faulty');
  const path = loose[0];
  if (faulty !== undefined && random(2) === 0) {
    tell({ event: 'note', text: `remove ${faulty.name}` });
    const device = await array.remove(faulty.name);
    await device.close();
    loose.push(device.name);
  } else if (path !== undefined && random(2) === 0) {
    const device = await FileDevice.open(path);
    loose.shift();
    try {
      await array.reAdd(device);
      tell({ event: 'note', text: `came back ${path}` });
    } catch (error) {
      if (!(error instanceof RaidError)) throw error;
      tell({ event: 'note', text: `add ${path}, since ${error.code}` });
      await array.add(device);
    }
  } else if (array.degraded === 0 && random(2) === 0) {
    const slot = random(array.layout.memberCount);
    tell({ event: 'note', text: `fail ${slot}` });
    await array.fail(slot);
    tell({ event: 'note', text: `failed ${slot}` });
  } else if (array.degraded === 0 && array.members.some(({ state }) => state.state === 'spare')) {
    const slot = random(array.layout.memberCount);
    const member = array.members.find(({ state }) => state.state === 'in_sync' && state.slot === slot);
    if (member === undefined) return;
    tell({ event: 'note', text: `replace ${member.name}` });
    await array.replace(member.name);
  }
}

/** Slowly enough that a kill comes in the middle. */
async function rebuilder(array: RaidArray): Promise<never> {
  for (;;) {
    for await (const { action, doneBytes } of array.rebuild({
      limitBytesPerSecond: (4 + random(40)) * MIB,
    }))
      tell({ event: 'note', text: `${action} ${doneBytes}` });
    await pause(20);
  }
}

async function main(): Promise<void> {
  const sources = await Promise.all(
    task.paths.map(async (path): Promise<Source> => {
      const device = await FileDevice.open(path);
      return { device, name: path, identity: device.identity };
    }),
  );
  const { array, report } = await assembleDevices(sources, {
    name: 'killed',
    cores: task.cores,
    force: task.force,
  });
  const loose: string[] = [];
  for (const [index, { joins }] of report.members.entries()) {
    const source = sources[index];
    if (source === undefined || (joins !== 'stale' && joins !== 'out')) continue;
    await source.device.close();
    loose.push(source.name);
  }
  tell({ event: 'note', text: `open: ${report.members.map(({ joins }) => joins).join(' ')}` });
  process.stdout.write('ready\n');
  await Promise.all([
    ...Array.from({ length: 3 }, () => writer(array)),
    ...(task.changes ? [changer(array, loose), rebuilder(array)] : []),
  ]);
}

main().catch((error: unknown) => {
  tell({ event: 'bug', text: error instanceof Error ? (error.stack ?? error.message) : String(error) });
  process.exit(1);
});
