/**
 * What people see, word by word: sessions as one would type them, held against transcripts/. After a change that is meant:
 *
 *   REGENERATE=1 npx vitest run --project slow test/cli/transcripts.slow.test.ts
 *
 * and read the difference. Times, speeds and process numbers are replaced; UUIDs come from --seed.
 */
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { Scratch, sampleBytes } from './raidsim.ts';

const here = fileURLToPath(new URL('./transcripts/', import.meta.url));
const regenerates = process.env['REGENERATE'] !== undefined;

/** A line to type; or something that happens outside of raidsim, in words and as it is done. */
type Line = string | readonly [says: string, does: (scratch: Scratch) => Promise<void>];

function deleted(name: string): Line {
  return [`# rm ${name}`, (scratch) => rm(scratch.path(name))];
}

function changed(name: string, at: number): Line {
  return [
    `# a byte of ${name} is changed`,
    async (scratch) => {
      const bytes = await readFile(scratch.path(name));
      bytes[at] = (bytes[at] ?? 0) ^ 1;
      await writeFile(scratch.path(name), bytes);
    },
  ];
}

const sessions: Readonly<Record<string, readonly Line[]>> = {
  life: [
    'create demo --level 5 --disks 4 --spares 1 --size 16M --chunk 64K --seed 1',
    'status demo',
    'fail demo disk1',
    'status demo',
    'rebuild demo',
    'status demo',
    'remove demo disk1',
    'add demo disk1',
    'fail demo 0 disk2',
    'list',
  ],
  bitmap: [
    'create demo -l 1 -n 2 -z 16M --bitmap internal --seed 2',
    'fail demo disk1',
    'write demo --from data.bin --length 100K',
    'remove demo disk1',
    're-add demo disk1',
    'status demo',
    'rebuild demo',
    'scrub demo',
    'status demo',
  ],
  bytes: [
    'create demo -l 6 -n 5 -z 8M -c 64K --seed 3 --quiet',
    'write demo --from data.bin --offset 100K',
    'read demo --offset 100K --length 1M --to part.bin',
    'explain demo write --offset 256K',
    'explain demo layout --stripes 3',
    'explain demo layout --svg map.svg',
    changed('demo/disk2.img', 1024 * 1024 + 200_000),
    'scrub demo',
    'scrub demo --repair',
    'scrub demo',
    changed('demo/disk0.img', 1024 * 1024 + 70_000),
    'scrub demo',
    'scrub demo --from 4M',
    'scrub demo --from 1G',
    'scrub demo --repair',
    'fail demo disk0 disk4',
    'explain demo read --offset 0 --length 64K',
    'explain demo layout --stripes 2',
  ],
  assembly: [
    'create demo -l raid5 -n 3 -z 8M -c 64K --seed 4 -q',
    deleted('demo/raidsim.json'),
    'status demo',
    'assemble demo',
    'examine demo/disk1.img',
    deleted('demo/disk1.img'),
    'status demo',
    'assemble again demo/disk0.img demo/disk2.img',
    'assemble again demo/disk0.img demo/disk2.img data.bin --run --overlay',
    'write again --from data.bin',
    'assemble again --run --readonly',
    'write again --from data.bin',
    'fail demo disk0',
    deleted('demo/disk0.img'),
    'status demo',
    'read demo --to copy.img',
  ],
  mistakes: [
    'create demo -l 5 -n 3 -z 8M -c 64K --seed 5 -q',
    'create other --level 7 --disks 3',
    'create other --disks 3',
    'create other --level 5',
    'create other -l 6 -n 3',
    'create other -l 1 -n 1',
    'create other -l 5 -n 4 --size 10QB',
    'create other -l 5 -n 4 --layout n2',
    'create demo -l 5 -n 3',
    'create data.bin -l 5 -n 3',
    'status dem',
    'status data.bin',
    'status .',
    'fail disk1 demo',
    'fail demo dsik1',
    'fail demo 7',
    'remove demo disk1',
    'add demo data.bin',
    'add demo disk9',
    'write demo --from data.bin --offset 14M',
    'write demo --from nothing.bin',
    'read demo --offset 1G --to copy.img',
    'read demo --to demo/disk0.img',
    'explain demo lyout',
    'examine data.bin demo',
    'demo status',
    'stauts demo',
    'status demo --jsno',
    'create other -n four',
    'create other -l 5 -n 4 --size 1M',
    'create other -l 1 data.bin nothing.img',
    'create other -l 1 data.bin demo',
    ['# an empty file, empty.bin', (scratch) => writeFile(scratch.path('empty.bin'), '')],
    'create other -l 1 data.bin empty.bin',
    'add demo empty.bin',
    'assemble other demo/disk0.img',
    're-add demo data.bin',
    'replace demo disk1',
  ],
};

function plain(text: string, scratch: Scratch): string {
  return text
    .replaceAll(scratch.folder, '/scratch')
    .replaceAll(/\b(?:\d+h\d\dm|\d+m\d\ds|\d+(?:\.\d)? s)\b(?: \([\d.]+ [KMG]?i?B\/s\))?/g, '0.1 s')
    .replaceAll(/process \d+/g, 'process 1234')
    .replaceAll(/\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}/g, 'Sat Nov 21 12:00:00 2026')
    .replaceAll(/(Checksum : )[\da-f]+/g, '$1a0b1c2d3');
}

/** How far a sync is said to be in between depends on the machine. */
function withoutProgress(text: string): string {
  return text.replaceAll(/^(?:recover|resync|check|repair|write|read) [\d.]+%.*\n/gm, '');
}

async function play(lines: readonly Line[]): Promise<string> {
  await using scratch = await Scratch.make();
  await writeFile(scratch.path('data.bin'), sampleBytes(3_000_000));
  const told: string[] = [];
  for (const line of lines) {
    if (typeof line !== 'string') {
      told.push(`${line[0]}\n`);
      await line[1](scratch);
      continue;
    }
    const { code, stdout, stderr } = await scratch.type(line);
    const exit = code === 0 ? '' : `[exit ${code}]\n`;
    told.push(`$ raidsim ${line}\n${plain(stdout + withoutProgress(stderr), scratch)}${exit}`);
  }
  return told.join('\n');
}

describe.concurrent('sessions', () => {
  for (const [name, lines] of Object.entries(sessions)) {
    test(name, async () => {
      const told = await play(lines);
      const file = `${here}${name}.txt`;
      if (regenerates) {
        await mkdir(here, { recursive: true });
        await writeFile(file, told);
      }
      expect(told).toBe(await readFile(file, 'utf8'));
    });
  }
});
