/** What is left of an array that has lost some of its data comes out, and what has not is named. */
import { copyFile, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { assert } from '../../lib/errors.ts';
import { seededRandom } from '../../lib/host.ts';
import { FaultDevice, FileDevice, openArray } from '../../lib/index.ts';
import { gptDisk } from '../device/tables.ts';
import { Scratch, sampleBytes } from './raidsim.ts';

const MIB = 1024 * 1024;
const DATA_AT = MIB;
const PAGE = 4096;

/** A mirror of one disk, which has a place of two pages that cannot be read, and was copied from one that had it too. */
async function damaged(scratch: Scratch, content: Uint8Array): Promise<void> {
  await writeFile(scratch.path('data.bin'), content);
  await scratch.done('create demo -l 1 -n 2 -z 8M -q');
  await scratch.done('write demo --from data.bin -q');
  await scratch.done('fail demo disk0 -q');
  const bad = { offsetBytes: DATA_AT + 5 * MIB, lengthBytes: 2 * PAGE };
  const array = await openArray(scratch.path('demo'), {
    driver: 'event-loop',
    wrap: (below) =>
      new FaultDevice(below, {
        rules: [{ on: 'read', range: bad, fault: { kind: 'error', code: 'MEDIUM_ERROR' } }],
      }),
  });
  const spare = await FileDevice.create(scratch.path('disk2.img'), 8 * MIB);
  await array.add(spare, 'disk2');
  for await (const { doneBytes, totalBytes } of array.rebuild())
    expect(doneBytes).toBeLessThanOrEqual(totalBytes);
  await array.close();
  await scratch.done('assemble rescue disk2.img --run -q');
}

test('read --keep-going writes zeros for what is lost, lists it, and ends with 5', async () => {
  await using scratch = await Scratch.make();
  const content = sampleBytes(7 * MIB);
  await damaged(scratch, content);
  const stopped = await scratch.type('read rescue --to stopped.bin');
  expect(stopped).toMatchObject({ code: 5, stderr: expect.stringContaining('REDUNDANCY_LOST') });

  const lost = { offsetBytes: 5 * MIB, lengthBytes: 2 * PAGE };
  const expected = content.slice().fill(0, lost.offsetBytes, lost.offsetBytes + lost.lengthBytes);
  const { code, stderr } = await scratch.type('read rescue --to rescued.bin --keep-going -q');
  expect({ code, stderr }).toEqual({
    code: 5,
    stderr: `lost: ${lost.lengthBytes} bytes at ${lost.offsetBytes}\n`,
  });
  expect(Buffer.compare(await readFile(scratch.path('rescued.bin')), expected)).toBe(0);

  const json = await scratch.type('read rescue --to rescued.bin --keep-going --json');
  expect({ code: json.code, document: JSON.parse(json.stdout) }).toMatchObject({
    code: 5,
    document: { lost: [lost] },
  });
  const rest = await scratch.type('read rescue --to rest.bin --offset 6M --keep-going --json');
  expect({ code: rest.code, document: JSON.parse(rest.stdout) }).toMatchObject({
    code: 0,
    document: { lost: [] },
  });
});

test('a scrub that has nothing to compare with says so, and is no agreement', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 5 -n 3 -z 8M -c 64K -q');
  await scratch.done('fail demo disk0 -q');
  for (const verb of ['scrub demo', 'scrub demo --repair']) {
    const { code, stdout } = await scratch.type(verb);
    expect({ code, stdout }).toEqual({
      code: 10,
      stdout: 'nothing could be compared: demo is degraded, and has no redundancy left\n',
    });
  }
  const { code, stdout } = await scratch.type('scrub demo --json');
  const summary = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as object;
  expect({ code, summary }).toMatchObject({ code: 10, summary: { comparedBytes: 0, mismatches: 0 } });
});

test('status remembers what the last scrub has left', async () => {
  await using scratch = await Scratch.make();
  await scratch.done('create demo -l 5 -n 3 -z 8M -c 64K -q');
  const disk = await readFile(scratch.path('demo', 'disk1.img'));
  disk[3 * MIB] = 1;
  await writeFile(scratch.path('demo', 'disk1.img'), disk);
  const mismatches = async (): Promise<unknown> =>
    (JSON.parse(await scratch.done('status demo --json')) as { mismatches: unknown }).mismatches;
  expect(await mismatches()).toBe(0);
  expect((await scratch.type('scrub demo -q')).code).toBe(12);
  expect(await mismatches()).toBe(1);
  expect(await scratch.done('status demo')).toMatch(/the last scrub found 1 mismatch, on \d{4}-\d\d-\d\dT/);
  await scratch.done('scrub demo --repair -q');
  expect(await mismatches()).toBe(0);
});

/** Images of whole disks, as of a NAS: a mirror in the first partition, the data in the third. */
async function nas(scratch: Scratch, content: Uint8Array): Promise<readonly string[]> {
  await writeFile(scratch.path('data.bin'), content);
  await scratch.done('create system -l 1 -n 3 -z 4M -q');
  await scratch.done('write system --from data.bin --quiet');
  await scratch.done('create data -l 5 -n 3 -z 8M -c 64K -q');
  await scratch.done('write data --from data.bin --quiet');
  const partitions = [
    { number: 1, first: 2048, sectors: 4 * 2048 },
    { number: 2, first: 10240, sectors: 2048 },
    { number: 3, first: 12288, sectors: 8 * 2048 },
  ];
  return await Promise.all(
    ['sda', 'sdb', 'sdc'].map(async (name, index) => {
      const disk = gptDisk(partitions, 15 * 2048);
      (await readFile(scratch.path(`system/disk${index}.img`))).copy(disk, 2048 * 512);
      (await readFile(scratch.path(`data/disk${index}.img`))).copy(disk, 12288 * 512);
      await writeFile(scratch.path(`${name}.img`), disk);
      return scratch.path(`${name}.img`);
    }),
  );
}

test('images of whole disks: what lies in their partitions is said, and opened by number', async () => {
  await using scratch = await Scratch.make();
  const content = sampleBytes(2 * MIB);
  await nas(scratch, content);
  const refused = await scratch.type('assemble nas sda.img sdb.img sdc.img --readonly');
  expect(refused.code).toBe(4);
  const advice = (number: number): string =>
    `assemble nas sda.img#${number} sdb.img#${number} sdc.img#${number} --readonly`;
  expect(refused.stderr).toContain(`  system, raid1\n  do: raidsim ${advice(1)}\n`);
  expect(refused.stderr).toContain(`  data, raid5\n  do: raidsim ${advice(3)}\n`);
  await scratch.done(advice(3));
  await scratch.done('assemble nas sda.img sdb.img sdc.img --partition 3 --readonly');
  await scratch.done('read nas --length 2M --to out.bin -q');
  expect(Buffer.compare(await readFile(scratch.path('out.bin')), content)).toBe(0);
  expect(await scratch.type('read nas --to sdb.img')).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('would be overwritten'),
  });
  const shadow = await scratch.type('read nas --to sdb.img#3');
  expect(shadow).toMatchObject({ code: 2, stderr: expect.stringContaining('would be overwritten') });
  for (const wrong of [
    'assemble other --partition 3',
    'assemble other sda.img#3 --partition 3',
    'assemble other sda.img --partition 0',
    'create other -l 1 sda.img sdd.img#1 -z 8M --force',
  ])
    expect(await scratch.type(wrong)).toMatchObject({ code: 2 });
  expect(await scratch.type('examine sda.img')).toMatchObject({
    code: 3,
    stderr: expect.stringContaining('  do: raidsim examine sda.img#3\n'),
  });
  expect(await scratch.type('assemble other sda.img#4 sdb.img#4')).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('it has 1 (4 MiB), 2 (1 MiB), 3 (8 MiB)'),
  });
});

test('an array in a partition writes nowhere else, and keeps the whole disk to itself', async () => {
  await using scratch = await Scratch.make();
  const content = sampleBytes(2 * MIB);
  const disks = await nas(scratch, content);
  const before = await Promise.all(disks.map((path) => readFile(path)));
  await scratch.done('assemble one sda.img sdb.img sdc.img --partition 1 -q');
  await scratch.done('assemble three sda.img#3 sdb.img#3 sdc.img#3 -q');
  await using data = await openArray(scratch.path('three'));
  for (const folder of ['three', 'one'])
    await expect(openArray(scratch.path(folder))).rejects.toMatchObject({ code: 'BUSY' });
  expect(await scratch.type('create other -l 1 sda.img sdb.img --force')).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('BUSY'),
  });
  await data.write(0, sampleBytes(3 * MIB).reverse());
  await data.fail('sdb3');
  await data.write(MIB, content);
  await data.close();
  for (const [index, path] of disks.entries()) {
    const after = await readFile(path);
    const is = before[index]!;
    for (const [from, to] of [
      [0, 12_288],
      [12_288 + 8 * 2048, 15 * 2048],
    ] as const)
      expect(after.subarray(from * 512, to * 512).equals(is.subarray(from * 512, to * 512))).toBe(true);
  }
  await scratch.done('read three --offset 1M --length 2M --to out.bin -q');
  expect(Buffer.compare(await readFile(scratch.path('out.bin')), content)).toBe(0);
  await scratch.done('read one --length 2M --to out.bin -q');
  expect(Buffer.compare(await readFile(scratch.path('out.bin')), content)).toBe(0);
});

/** What is saved of three disks: rows in turn, of which one disk could not be read here and there, but never two. */
async function rescued(scratch: Scratch, content: Uint8Array): Promise<void> {
  await writeFile(scratch.path('data.bin'), content);
  await scratch.done('create a -l 5 -n 3 -z 8M -c 64K -q');
  await scratch.done('write a --from data.bin --quiet');
  const holes: (readonly (readonly [number, number])[])[] = [[], [], []];
  const random = seededRandom(11);
  for (let sector = 4096; sector < 14_000; ) {
    const count = 1 + random(random(2) === 0 ? 3 : 40);
    const disk = random(3);
    holes[disk] = [...(holes[disk] ?? []), [sector, count]];
    sector += count + random(60);
  }
  for (const [index, name] of ['sda', 'sdb', 'sdc'].entries()) {
    const image = await readFile(scratch.path(`a/disk${index}.img`));
    const lines = ['# Mapfile. Created by GNU ddrescue version 1.26', '0x0 + 1'];
    let at = 0;
    for (const [sector, count] of holes[index] ?? []) {
      lines.push(`${at} ${sector * 512 - at} +`, `${sector * 512} ${count * 512} -`);
      at = (sector + count) * 512;
      image.fill(0, sector * 512, at);
    }
    lines.push(`${at} ${image.byteLength - at} +`);
    await writeFile(scratch.path(`${name}.img`), image);
    await writeFile(scratch.path(`${name}.map`), `${lines.join('\n')}\n`);
  }
}

test('of three disks, none of which could be read everywhere, all is there again', async () => {
  await using scratch = await Scratch.make();
  const content = sampleBytes(14 * MIB);
  await rescued(scratch, content);
  const { stdout } = await scratch.type('assemble nas sda.img sdb.img sdc.img --readonly');
  for (const name of ['sda', 'sdb', 'sdc'])
    expect(stdout).toMatch(new RegExp(`  ${name}: .* could not be read from the disk \\(.*/${name}.map\\)`));
  await scratch.done('read nas --length 14M --to out.bin -q');
  expect(Buffer.compare(await readFile(scratch.path('out.bin')), content)).toBe(0);
  expect(await scratch.type('status nas')).toMatchObject({
    stdout: expect.stringContaining('what too many disks lack in the same place is lost'),
  });
  await rename(scratch.path('sdb.map'), scratch.path('moved.map'));
  const unmapped = await scratch.type('read nas --length 14M --to out.bin');
  expect(unmapped).toMatchObject({ stderr: expect.stringContaining('not beside it any more') });
  await rename(scratch.path('moved.map'), scratch.path('sdb.map'));
  for (const how of ['', ' --overlay']) {
    const refused = await scratch.type(`assemble other sda.img sdb.img sdc.img${how}`);
    expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining('assemble --readonly') });
  }
});

test('what two of them lack is named, exactly, and all else is there', async () => {
  await using scratch = await Scratch.make();
  const content = sampleBytes(14 * MIB);
  await rescued(scratch, content);
  const map = await readFile(scratch.path('sdb.map'), 'latin1');
  await rm(scratch.path('sda.map'));
  await copyFile(scratch.path('a/disk0.img'), scratch.path('sda.img'));
  await writeFile(scratch.path('sda.img.mapfile'), map);
  await scratch.done('assemble nas sda.img sdb.img sdc.img --readonly -q');
  const read = await scratch.type('read nas --length 14M --to out.bin --keep-going --json');
  expect(read.code).toBe(5);
  const { lost } = JSON.parse(read.stdout) as {
    lost: readonly { readonly offsetBytes: number; readonly lengthBytes: number }[];
  };
  const [examined] = JSON.parse((await scratch.type('examine sdb.img --json')).stdout) as readonly {
    readonly dataOffsetSectors: number;
  }[];
  await using array = await openArray(scratch.path('nas'));
  const { layout } = array;
  assert(layout.kind === 'parity', 'it is a raid5');
  const { chunkBytes } = layout;
  const gone = new Uint8Array(content.byteLength / 512);
  for (const [, from, length] of map.matchAll(/^([0-9]+) ([0-9]+) -$/gm)) {
    for (let at = Number(from); at < Number(from) + Number(length); at += 512) {
      const inMember = at - examined!.dataOffsetSectors * 512;
      const row = Math.floor(inMember / chunkBytes);
      for (const [chunk, member] of layout.row(row).data.entries()) {
        const inArray = (row * layout.dataCount + chunk) * chunkBytes + (inMember % chunkBytes);
        if (member !== 2 && inArray < content.byteLength) gone[inArray / 512] = 1;
      }
    }
  }
  const told = new Uint8Array(gone.byteLength);
  for (const { offsetBytes, lengthBytes } of lost)
    told.fill(1, offsetBytes / 512, (offsetBytes + lengthBytes) / 512);
  expect(Buffer.compare(told, gone)).toBe(0);
  const expected = content.slice();
  for (const { offsetBytes, lengthBytes } of lost) expected.fill(0, offsetBytes, offsetBytes + lengthBytes);
  expect(Buffer.compare(await readFile(scratch.path('out.bin')), expected)).toBe(0);
});
