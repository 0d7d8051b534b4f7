/**
 * The process that is killed: makes backups, prunes and repairs, for ever. What it is to do comes as JSON in its only argument;
 * it writes the id of each backup to a file of its own before it begins the next. Run from dist, as a program.
 */
import { existsSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { DirectoryStore } from '../../lib/backup/directory.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { seededRandom } from '../../lib/host.ts';
import { imageNumber } from './kill-image.ts';
import { deviceOf } from './world.ts';

export interface KillTask {
  readonly folder: string;
  readonly historyPath: string;
  readonly seed: number;
  readonly firstImage: number;
}

const task = JSON.parse(process.argv[2] ?? '') as KillTask;
const random = seededRandom(task.seed);
const history = openSync(task.historyPath, 'a');
const tell = (line: object): void => {
  writeSync(history, `${JSON.stringify(line)}\n`);
};

async function work(): Promise<never> {
  const repository = await Repository.open(new DirectoryStore(task.folder));
  let isWhole = false;
  process.stdout.write('ready\n');
  for (let image = task.firstImage; ; image += 1) {
    const kind = random(10);
    if (kind < 6) {
      tell({ event: 'create', image });
      const backup = await repository.createBackup({
        source: deviceOf(imageNumber(image)),
        array: String(image),
      });
      tell({ event: 'created', image, id: backup?.id });
    } else if (kind < 8) {
      const going = (await repository.list()).slice(0, -3).map(({ id }) => id);
      tell({ event: 'prune', going });
      await repository.prune({ remove: going });
      tell({ event: 'pruned', going });
    } else {
      // One pack at a time: it is made again before another is taken, also where a kill comes in between.
      const folder = join(task.folder, 'packs');
      // Before the first backup there is none.
      const packs = isWhole && existsSync(folder) ? readdirSync(folder) : [];
      const pack = packs[random(packs.length + 1)];
      isWhole = false;
      if (pack !== undefined) rmSync(join(folder, pack));
      tell({ event: 'repair', pack });
      await repository.repair();
      isWhole = true;
      tell({ event: 'repaired' });
    }
  }
}

work().catch((error: unknown) => {
  tell({ event: 'bug', text: error instanceof Error ? (error.stack ?? error.message) : String(error) });
  process.exit(1);
});
