import { rm, writeFile } from 'node:fs/promises';
import { afterAll, test } from 'vitest';
import { DelayDevice } from '../../lib/device/delay.ts';
import type { Device } from '../../lib/device/device.ts';
import { FaultDevice } from '../../lib/device/fault.ts';
import { FileDevice } from '../../lib/device/file.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { OverlayDevice } from '../../lib/device/overlay.ts';
import { PartitionDevice } from '../../lib/device/partition.ts';
import { RecordDevice } from '../../lib/device/record.ts';
import { RescuedDevice } from '../../lib/device/rescued.ts';
import { SliceDevice } from '../../lib/device/slice.ts';
import { realHost, seededRandom } from '../../lib/host.ts';
import { parseConf, settingsFor } from '../../lib/multipath/conf.ts';
import { MultipathDevice, pathOver } from '../../lib/multipath/device.ts';
import { Fabric } from '../../lib/multipath/fabric.ts';
import { defaultTopology } from '../../lib/multipath/topology.ts';
import { KIB, MIB } from '../../lib/units.ts';
import { directFolder, scratchFolder } from '../device/scratch.ts';
import { gptDisk } from '../device/tables.ts';
import { randomBytes, runSeed } from './seed.ts';
import { conformance } from './suite.ts';

const folder = await scratchFolder();
const direct = await directFolder(folder);
afterAll(() => rm(folder, { recursive: true }));

let count = 0;
const nextPath = () => `${folder}/disk${count++}.img`;
// Large enough for space to be released by the range, which files do only from 1 MiB on.
const size = MIB + 140 * KIB;
const content = randomBytes(seededRandom(runSeed), 256 * KIB);

async function holding<D extends Device>(device: D): Promise<D> {
  await device.write(0, content);
  return device;
}

conformance('memory', async () => ({ device: new MemoryDevice({ sizeBytes: size }) }), { copies: true });
conformance(
  'memory in blocks of 512 with room to grow',
  async () => ({
    device: await holding(new MemoryDevice({ sizeBytes: size, capacityBytes: size + MIB, blockBytes: 512 })),
  }),
  { copies: true, resize: true, content },
);
conformance(
  'read-only memory',
  async () => {
    const { memory } = await holding(new MemoryDevice({ sizeBytes: content.byteLength }));
    return { device: new MemoryDevice({ sizeBytes: content.byteLength, memory, readOnly: true }) };
  },
  { readOnly: true, content },
);

conformance('a file', async () => ({ device: await FileDevice.create(nextPath(), size) }), { resize: true });
conformance(
  'a file in blocks of 4096',
  async () => ({
    device: await FileDevice.create(nextPath(), size, { blockBytes: 4096, preallocate: true }),
  }),
  { resize: true },
);
conformance(
  'a read-only file',
  async () => {
    const path = nextPath();
    await using made = await FileDevice.create(path, content.byteLength);
    await holding(made);
    return { device: await FileDevice.open(path, { readOnly: true }) };
  },
  { readOnly: true, content },
);

if (direct.works) {
  for (const blockBytes of direct.blockBytes) {
    conformance(
      `a file past the page cache, in blocks of ${blockBytes}`,
      async () => ({ device: await FileDevice.create(nextPath(), size, { direct: true, blockBytes }) }),
      { resize: true },
    );
  }
} else {
  test(`a file past the page cache: not tried, ${direct.why}`, (context) => context.skip(direct.why));
}

conformance(
  'a slice of memory',
  async () => ({
    device: new SliceDevice(new MemoryDevice({ sizeBytes: 2 * size }), {
      offsetBytes: 512,
      lengthBytes: size,
    }),
  }),
  { copies: true },
);
conformance('a shared slice of a file', async () => {
  const below = await FileDevice.create(nextPath(), 2 * size);
  const device = new SliceDevice(below, { offsetBytes: 4 * KIB, lengthBytes: size, shared: true });
  return { device, dispose: () => below.close() };
});
conformance('a partition of an image', async () => {
  const path = nextPath();
  await writeFile(path, gptDisk([{ number: 3, first: 2048, sectors: size / 512 }], 2048 + size / 512 + 64));
  return { device: await PartitionDevice.open(await FileDevice.open(path), 3) };
});
conformance(
  'a copy of a disk that was read whole',
  async () => {
    const path = nextPath();
    await writeFile(path, content);
    const file = await FileDevice.open(path, { readOnly: true });
    return { device: new RescuedDevice(file, { path: 'map', sizeBytes: content.byteLength, unread: [] }) };
  },
  { readOnly: true, content },
);
conformance(
  'a slice of a read-only slice',
  async () => {
    const { memory } = await holding(new MemoryDevice({ sizeBytes: size, blockBytes: 512 }));
    const below = new MemoryDevice({ sizeBytes: size, blockBytes: 512, memory, readOnly: true });
    const outer = new SliceDevice(below, { offsetBytes: 0, lengthBytes: 256 * KIB });
    return { device: new SliceDevice(outer, { offsetBytes: 64 * KIB, lengthBytes: 128 * KIB }) };
  },
  { readOnly: true, content: content.subarray(64 * KIB, 192 * KIB) },
);

const host = { sleep: () => Promise.resolve() };
const small = () => new MemoryDevice({ sizeBytes: 256 * KIB, blockBytes: 512, capacityBytes: 512 * KIB });
const filtered = { copies: true, resize: true };

conformance('a fault filter without rules', async () => ({ device: new FaultDevice(small()) }), filtered);
conformance('a delay filter at rest', async () => ({ device: new DelayDevice(small(), { host }) }), filtered);
conformance(
  'a delay filter that delays everything',
  async () => ({ device: new DelayDevice(small(), { host, delayMs: 5 }) }),
  filtered,
);
conformance(
  'a record filter',
  async () => ({ device: new RecordDevice(small(), { capture: true }) }),
  filtered,
);
conformance('filters on filters on a slice of a file', async () => {
  const file = await FileDevice.create(nextPath(), size);
  const slice = new SliceDevice(file, { offsetBytes: 8 * KIB, lengthBytes: size - 8 * KIB });
  return { device: new RecordDevice(new DelayDevice(new FaultDevice(slice), { host, delayMs: 1 })) };
});

conformance(
  'an overlay over a read-only file whose last block is not whole',
  async () => {
    const path = nextPath();
    const sizeBytes = content.byteLength - 100;
    {
      await using made = await FileDevice.create(path, sizeBytes);
      await made.write(0, content.subarray(0, sizeBytes));
    }
    const below = await FileDevice.open(path, { readOnly: true });
    return { device: await OverlayDevice.open(below, nextPath(), { create: true }) };
  },
  { content: content.subarray(0, content.byteLength - 100) },
);
conformance('an overlay over memory in blocks of 512', async () => {
  const below = await holding(new MemoryDevice({ sizeBytes: size, blockBytes: 512 }));
  return { device: await OverlayDevice.open(below, nextPath(), { create: true }) };
});

const multipath = {
  ...settingsFor(parseConf('defaults {\n path_grouping_policy multibus\n no_path_retry queue\n}'), {
    wwid: 'lun',
  }),
  pollingMs: 2,
  maxPollingMs: 4,
};

conformance('three paths to one memory, two of which fail every few requests', async () => {
  const lun = new MemoryDevice({ sizeBytes: size, blockBytes: 512 });
  const slice = () => new SliceDevice(lun, { offsetBytes: 0, lengthBytes: size, shared: true });
  const gone = { kind: 'error', code: 'MEMBER_GONE', applied: 'prefix' } as const;
  const flaky = async () =>
    new FaultDevice(slice(), { rules: [{ on: 'any', when: { nth: 7 }, fault: gone }] });
  const paths = [
    pathOver('sda', 'lun', flaky),
    pathOver('sdb', 'lun', flaky),
    pathOver('sdc', 'lun', async () => slice()),
  ];
  return { device: await MultipathDevice.open(paths, { host: realHost, settings: multipath, tickMs: 1 }) };
});
conformance(
  'two paths to a read-only memory',
  async () => {
    const { memory } = await holding(new MemoryDevice({ sizeBytes: content.byteLength }));
    const open = async () => new MemoryDevice({ sizeBytes: content.byteLength, memory, readOnly: true });
    const paths = [pathOver('sda', 'lun', open), pathOver('sdb', 'lun', open)];
    return { device: await MultipathDevice.open(paths, { host: realHost, settings: multipath }) };
  },
  { readOnly: true, content },
);

function fabricOver(below: Device, failed: readonly string[] = []) {
  const fabric = new Fabric(defaultTopology(2, 2, 'lun'), { host: realHost });
  for (const name of failed) fabric.fail(name);
  return { fabric, paths: fabric.attach({ identity: 'lun' }, below, multipath) };
}

conformance('one path through a fabric', async () => {
  const { paths } = fabricOver(small());
  return { device: (await paths[0]?.connect())?.device as Device };
});
conformance('one path through a fabric that is slow and narrow', async () => {
  const { fabric, paths } = fabricOver(small());
  fabric.set('sw0', { delayMs: 2, queueDepth: 3 });
  fabric.set('ctl0', { bytesPerSecond: 200 * MIB });
  return { device: (await paths[0]?.connect())?.device as Device };
});
conformance('four paths through a fabric, of which two have failed', async () => {
  const { paths } = fabricOver(small(), ['hba1']);
  return { device: await MultipathDevice.open(paths, { host: realHost, settings: multipath }) };
});
