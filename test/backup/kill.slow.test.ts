/**
 * `kill -9` at random moments of create, prune and repair, on real files: every backup that was made and not pruned is listed,
 * everything that is listed is whole, and the next process goes on.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, test } from 'vitest';
import { DirectoryStore } from '../../lib/backup/directory.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { seededRandom } from '../../lib/host.ts';
import { runSeed, withSeed } from '../conformance/seed.ts';
import type { KillTask } from './kill-child.ts';
import { imageNumber } from './kill-image.ts';
import { expectSame, newRepository, restored } from './world.ts';

const program = resolve(import.meta.dirname, '../../dist/test/backup/kill-child.js');
const KILLS = 200;

interface Line {
  readonly event: string;
  readonly image?: number;
  readonly id?: string;
  readonly going?: readonly string[];
  readonly text?: string;
}

test(`survives ${KILLS} kills`, () =>
  withSeed(runSeed, async () => {
    const random = seededRandom(runSeed);
    const scratch = mkdtempSync(join(tmpdir(), 'raidsim-backup-kill-'));
    try {
      const folder = join(scratch, 'repo');
      const historyPath = join(scratch, 'history');
      await newRepository(new DirectoryStore(folder), {
        redundancy: 2,
        chunkBytes: 4096,
        pageChunks: 32,
        packBytes: 60_000,
        groupPacks: 4,
      });
      const moments = { create: 0, prune: 0, repair: 0 };
      for (let kill = 0; kill < KILLS; kill += 1) {
        const task: KillTask = { folder, historyPath, seed: random(2 ** 31), firstImage: kill * 100 };
        await runAndKill(task, random(300));
        const lines = linesOf(historyPath);
        const bug = lines.find(({ event }) => event === 'bug');
        if (bug !== undefined) expect.fail(`kill ${kill}: ${bug.text}`);
        const last = lines.at(-1)?.event ?? '';
        if (last in moments) moments[last as keyof typeof moments] += 1;
        if (kill % 5 === 4) await judge(folder, lines, `after kill ${kill}`);
      }
      const repository = await Repository.open(new DirectoryStore(folder));
      await repository.repair();
      const { damaged, lost } = (await repository.verify({ readPercent: 100 })) ?? {};
      expect({ damaged, lost }).toEqual({ damaged: [], lost: [] });
      // Otherwise it was never killed in the middle of what it is about.
      for (const [event, count] of Object.entries(moments)) expect(count, event).toBeGreaterThan(KILLS / 40);
    } finally {
      rmSync(scratch, { recursive: true });
    }
  }));

async function runAndKill(task: KillTask, afterMs: number): Promise<void> {
  const child = spawn(process.execPath, [program, JSON.stringify(task)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((settle) => child.once('exit', settle));
  await new Promise((settle) => child.stdout.once('data', settle));
  const timer = setTimeout(() => child.kill('SIGKILL'), afterMs);
  await ended;
  clearTimeout(timer);
}

function linesOf(path: string): readonly Line[] {
  return readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line.endsWith('}'))
    .map((line) => JSON.parse(line) as Line);
}

async function judge(folder: string, lines: readonly Line[], what: string): Promise<void> {
  const repository = await Repository.open(new DirectoryStore(folder));
  const backups = await repository.list();
  for (const backup of backups)
    expectSame(await restored(repository, backup), imageNumber(Number(backup.array)), what);
  const gone = new Set(lines.flatMap(({ going = [] }) => going));
  const listed = new Set(backups.map(({ id }) => id));
  for (const { event, id } of lines) {
    if (event === 'created' && id !== undefined && !gone.has(id))
      expect(listed.has(id), `${what}: ${id}`).toBe(true);
  }
  expect((await repository.verify({ readPercent: 100 }))?.lost, what).toEqual([]);
}
