/** Backups: what survives the array. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { RepairReport } from '../../lib/index.ts';
import { LISTENING, type ListenOptions, listenOptions, tlsOf } from '../listening.ts';
import { actionArgument, count, examples, jsonOption, quietOption } from '../options.ts';
import type { RepositoryChoice } from '../repository.ts';

const actions = ['create', 'list', 'restore', 'mount', 'verify', 'prune', 'repair'] as const;
type Action = (typeof actions)[number];

interface Options extends RepositoryChoice, ListenOptions {
  readonly redundancy?: 0 | 1 | 2;
  readonly chunk?: string;
  readonly snapshot?: string | false;
  readonly to?: string;
  readonly socket?: string;
  readonly readData?: boolean | number;
  readonly keepLast?: number;
  readonly keepDaily?: number;
  readonly keepWeekly?: number;
  readonly keepMonthly?: number;
  readonly remove?: readonly string[];
  readonly dryRun?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const common: readonly (keyof Options)[] = ['repo', 'passphraseFile', 'json', 'quiet'];

/** What an action takes besides: an option that it does not know is a mistake, not something to be passed over. */
const taken: Readonly<Record<Action, readonly (keyof Options)[]>> = {
  create: ['redundancy', 'chunk', 'snapshot'],
  list: [],
  restore: ['to'],
  mount: ['socket', ...LISTENING],
  verify: ['readData'],
  prune: ['keepLast', 'keepDaily', 'keepWeekly', 'keepMonthly', 'remove', 'dryRun'],
  repair: [],
};

export function define(command: Command): void {
  command
    .addArgument(
      actionArgument('backup', actions, {
        ls: 'list',
        snapshots: 'list',
        delete: 'prune',
        rm: 'prune',
        forget: 'prune',
        check: 'verify',
        extract: 'restore',
      }),
    )
    .argument('[what]', 'create: folder of the array, or a file; restore, mount: id of the backup, or latest')
    .option('--repo <dir>', 'folder of the repository, or s3:https://HOST/BUCKET/PREFIX (or RAIDSIM_REPO)')
    .option('--passphrase-file <file>', 'the passphrase of an encrypted repository (or RAIDSIM_PASSPHRASE)')
    .optionsGroup('Options of create:')
    .option('--snapshot <name>', 'back up this snapshot of the array (default: one that is taken now)')
    .option('--no-snapshot', 'read the array itself, which nobody may have open; all of it is read')
    .optionsGroup('Options of create, for a new repository:')
    .addOption(
      new Option('--redundancy <n>', 'parity files for each group of 8 packs: so many files may be lost')
        .choices(['0', '1', '2'])
        .argParser((text): number => {
          if (!/^[012]$/.test(text)) throw new InvalidArgumentError('Write 0, 1 or 2.');
          return Number(text);
        }),
    )
    .option('--chunk <size>', 'what is stored once is cut into pieces of this size (default: 256K)')
    .optionsGroup('Options of restore:')
    .option('--to <file>', 'an array, which is overwritten, or a file or block device')
    .optionsGroup('Options of mount:')
    .option('--socket <path>', 'Unix socket for NBD clients (default: nbd.sock in this folder)');

  listenOptions(command, 'let everybody read the backup who can reach --listen')
    .optionsGroup('Options of verify:')
    .option(
      '--read-data [percent]',
      'read the packs too, or a share of them, and check every byte',
      percentage,
    )
    .optionsGroup('Options of prune:')
    .option('--keep-last <n>', 'keep the newest n backups of each array', count)
    .option('--keep-daily <n>', 'keep the newest of each of the last n days that have one', count)
    .option('--keep-weekly <n>', 'and of each of the last n weeks', count)
    .option('--keep-monthly <n>', 'and of each of the last n months', count)
    .option('--remove <id...>', 'let these backups go, whatever is to be kept')
    .option('--dry-run', 'say what would go, and change nothing')
    .optionsGroup('Options:')
    .addOption(jsonOption('one JSON document'))
    .addOption(quietOption())
    .action(async (action: Action, what: string | undefined, options: Options) => {
      await run(action, what, options);
    });
  examples(
    command,
    [
      'raidsim backup create demo --repo /mnt/backups --redundancy 2',
      'raidsim backup create demo --repo /mnt/backups --snapshot before-upgrade',
      'raidsim backup list --repo /mnt/backups',
      'raidsim backup restore latest --repo /mnt/backups --to copy.img',
      'raidsim backup mount latest --repo /mnt/backups --socket /tmp/backup.sock',
      'raidsim backup mount latest --repo /mnt/backups --listen 0.0.0.0:10809 --tls-certificates pki',
      'raidsim backup verify --repo /mnt/backups --read-data 10',
      'raidsim backup prune --repo /mnt/backups --keep-daily 7 --keep-weekly 4',
      'raidsim backup repair --repo /mnt/backups',
    ],
    `create makes the repository where there is nothing. With a passphrase it is encrypted. Chunks that are there already
are not stored again, of whatever array; interrupted, the next backup goes on from what was stored.

An array is backed up as it was at an instant: create takes a snapshot, reads that, and lets go of it; served or not, the array
may be written to meanwhile. What changes afterwards is remembered, and the next backup reads only that. Where it is
not known (the snapshot store was dropped, or something wrote past it), all of the array is read.

mount serves a backup over NBD, read-only, without restoring it, until Ctrl-C. What is read comes out of the packs then, checked; what is
lost is an error of exactly that place. Nothing is locked: backups are made meanwhile. prune lets a backup stay that is mounted, restored or
exported, and says who reads it.

verify ends with 12 if repair can mend what it found, and with 5 if data is lost, and names it.`,
  );
}

function percentage(text: string): number {
  const value = Number(text.replace(/%$/, ''));
  if (!(value > 0 && value <= 100)) throw new InvalidArgumentError('Write a percentage, for example 10.');
  return value;
}

async function run(action: Action, what: string | undefined, options: Options): Promise<void> {
  const { RaidError } = await import('../../lib/index.ts');
  const known = [...common, ...taken[action]];
  for (const name of Object.keys(options) as (keyof Options)[]) {
    if (known.includes(name)) continue;
    const flag = `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    throw new RaidError('BAD_ARGUMENT', `backup ${action} does not take ${flag}`);
  }
  if (action === 'create' || action === 'restore' || action === 'mount') {
    if (what === undefined) {
      throw new RaidError(
        'BAD_ARGUMENT',
        action === 'create'
          ? 'backup create ARRAY: say what to back up'
          : `backup ${action} ID: say which backup, or latest`,
      );
    }
    return await { create, restore, mount }[action](what, options);
  }
  if (what !== undefined) {
    throw new RaidError(
      'BAD_ARGUMENT',
      action === 'prune'
        ? `backup prune takes no "${what}"; what is to go by name: --remove ${what}`
        : `backup ${action} takes no "${what}": it is about all of the repository, --repo DIR`,
    );
  }
  const works = { list, verify, prune, repair } as const;
  return await works[action](options);
}

async function create(what: string, options: Options): Promise<void> {
  const { formatSize, parseSize } = await import('../../lib/index.ts');
  const { Interrupt, INTERRUPTED, printJson, Progress } = await import('../progress.ts');
  const { openOrCreateRepository, withRoom } = await import('../repository.ts');
  const { duration } = await import('../render.ts');
  const { openInstant } = await import('../image.ts');

  using interrupt = new Interrupt();
  const source = await openInstant(what, options.snapshot ?? null);
  let isBackedUp = false;
  let readBytes = 0;
  try {
    const { repository, isNew } = await openOrCreateRepository(options, {
      ...(options.redundancy === undefined ? {} : { redundancy: options.redundancy }),
      ...(options.chunk === undefined ? {} : { chunkBytes: parseSize(options.chunk) }),
    });
    if (isNew && options.quiet !== true && options.json !== true) {
      const kind = repository.settings.encryption === null ? 'not encrypted' : 'encrypted';
      process.stderr.write(
        `made a new repository in ${repository.name}, ${kind}, redundancy ${repository.settings.redundancy}\n`,
      );
    }
    const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
    const backup = await repository
      .createBackup({
        source: source.device,
        array: source.name,
        uuid: source.uuid,
        point: source.point,
        ...(source.changedSince === null ? {} : { changedSince: source.changedSince }),
        signal: interrupt.signal,
        progress: ({ doneBytes, totalBytes, addedBytes, ...step }) => {
          readBytes = step.readBytes;
          progress.show({ action: 'backup', doneBytes, totalBytes }, {}, `${formatSize(addedBytes)} new`);
        },
      })
      .catch((error: unknown) => {
        throw withRoom(error, options);
      })
      .finally(() => progress.clear());
    if (backup === null) {
      process.exitCode = INTERRUPTED;
      if (options.json === true) return printJson({ interrupted: true });
      process.stderr.write('interrupted: there is no backup yet; the next goes on from what was stored\n');
      return;
    }
    isBackedUp = true;
    if (options.json === true) return printJson({ ...backup, readBytes });
    if (options.quiet !== true) {
      process.stdout.write(
        `backup ${backup.id}: ${formatSize(backup.sizeBytes)} of ${backup.array}, ${formatSize(readBytes)} read, ${formatSize(backup.addedBytes)} of it new, ${formatSize(backup.storedBytes)} stored, in ${duration(progress.seconds)}\n`,
      );
    }
  } finally {
    await source.close(isBackedUp);
  }
}

async function list(options: Options): Promise<void> {
  const { formatSize } = await import('../../lib/index.ts');
  const { printJson } = await import('../progress.ts');
  const { openRepository } = await import('../repository.ts');
  const { table } = await import('../render.ts');
  const repository = await openRepository(options);
  const backups = await repository.list();
  if (options.json === true) return printJson({ backups });
  if (backups.length === 0) {
    process.stderr.write(`no backups in ${repository.name}\n`);
    return;
  }
  const rows = backups.map(({ id, createdAt, array, sizeBytes, storedBytes }) => [
    id,
    createdAt.replace('T', ' ').slice(0, 19),
    formatSize(sizeBytes),
    formatSize(storedBytes),
    array,
  ]);
  const columns = [
    { title: 'ID' },
    { title: 'TIME (UTC)' },
    { title: 'SIZE', align: 'right' },
    { title: 'STORED', align: 'right' },
    { title: 'ARRAY' },
  ] as const;
  process.stdout.write(`${table(columns, rows)}\n`);
}

async function restore(id: string, options: Options): Promise<void> {
  const { formatSize, RaidError } = await import('../../lib/index.ts');
  const { Interrupt, INTERRUPTED, printJson, Progress } = await import('../progress.ts');
  const { openRepository, saysUnheld } = await import('../repository.ts');
  const { duration } = await import('../render.ts');
  const { restoreTo } = await import('../image.ts');
  const { to } = options;
  if (to === undefined) throw new RaidError('BAD_ARGUMENT', 'say where the backup goes: --to ARRAY or FILE');
  using interrupt = new Interrupt();
  const repository = await openRepository(options);
  const backup = await repository.find(id);
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  const isDone = await restoreTo(repository, backup, to, {
    unheld: saysUnheld(repository, backup.id),
    signal: interrupt.signal,
    progress: ({ doneBytes, totalBytes }) => progress.show({ action: 'restore', doneBytes, totalBytes }),
  }).finally(() => progress.clear());
  if (!isDone) process.exitCode = INTERRUPTED;
  const { sizeBytes } = backup;
  if (options.json === true) return printJson({ id: backup.id, to, sizeBytes, interrupted: !isDone });
  if (!isDone) process.stderr.write(`interrupted: ${to} does not hold the backup\n`);
  else if (options.quiet !== true) {
    const rate =
      progress.seconds < 0.05 ? '' : ` (${formatSize(Math.round(sizeBytes / progress.seconds))}/s)`;
    process.stdout.write(
      `restored backup ${backup.id} of ${backup.array}, ${formatSize(sizeBytes)}, to ${to}, in ${duration(progress.seconds)}${rate}\n`,
    );
  }
}

/** Until a signal comes. */
async function mount(id: string, options: Options): Promise<void> {
  const { resolve } = await import('node:path');
  const { serveNbd } = await import('../../lib/index.ts');
  const { printJsonLine } = await import('../progress.ts');
  const { openRepository, saysUnheld } = await import('../repository.ts');
  const { stopAsked } = await import('../signals.ts');
  const stop = stopAsked();
  const repository = await openRepository(options);
  const { id: whole, array, sizeBytes } = await repository.find(id);
  await using device = await repository.openBackup(whole, {
    hold: true,
    unheld: saysUnheld(repository, whole),
  });
  // A socket is for its owner only.
  process.umask(0o077);
  const { listen } = options;
  const socket = options.socket ?? (listen === undefined ? 'nbd.sock' : undefined);
  await using server = await serveNbd([{ name: whole, device }], {
    ...(socket === undefined ? {} : { socket: resolve(socket) }),
    ...(listen === undefined ? {} : { listen }),
    tls: (await tlsOf(options)) ?? undefined,
    insecure: options.insecure === true,
  });
  const { uris } = server;
  if (options.json === true)
    printJsonLine({ type: 'ready', id: whole, array, sizeBytes, uris, pid: process.pid });
  else
    process.stdout.write(
      `ready ${uris[0]}\n${uris
        .slice(1)
        .map((uri) => `also ${uri}\n`)
        .join('')}`,
    );
  await stop;
}

const LOST = 5;
const DAMAGED = 12;

async function verify(options: Options): Promise<void> {
  const { formatSize } = await import('../../lib/index.ts');
  const { Interrupt, INTERRUPTED, printJson, Progress } = await import('../progress.ts');
  const { openRepository } = await import('../repository.ts');
  using interrupt = new Interrupt();
  const repository = await openRepository(options);
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  const readPercent =
    options.readData === undefined ? 0 : options.readData === true ? 100 : Number(options.readData);
  const report = await repository
    .verify({
      readPercent,
      signal: interrupt.signal,
      progress: ({ doneBytes, totalBytes }) => progress.show({ action: 'verify', doneBytes, totalBytes }),
    })
    .finally(() => progress.clear());
  if (report === null) {
    process.exitCode = INTERRUPTED;
    return;
  }
  if (report.lost.length > 0) process.exitCode = LOST;
  else if (report.damaged.length > 0) process.exitCode = DAMAGED;
  if (options.json === true) return printJson(report);
  if (options.quiet === true && report.damaged.length + report.lost.length === 0) return;
  const read = readPercent === 0 ? 'not read' : `${report.packsRead} read`;
  process.stdout.write(
    `backups: ${report.backups}, packs: ${report.packs} (${read}), ${formatSize(report.storedBytes)} stored\n`,
  );
  for (const { name, why, repairable } of report.damaged) {
    process.stdout.write(`damaged: ${name} ${why}${repairable ? '; repair can make it again' : ''}\n`);
  }
  await printLost(report.lost);
  if (report.unprotected.length > 0) {
    process.stdout.write(
      `less redundancy than there should be: ${report.unprotected.length} files; repair gives it\n`,
    );
  }
  if (report.lost.length > 0) process.stdout.write('data is lost\n');
  else if (report.damaged.length > 0) process.stdout.write('nothing is lost; run backup repair\n');
  else process.stdout.write(readPercent === 100 ? 'all of it is as it was written\n' : 'no damage found\n');
}

async function printLost(lost: RepairReport['lost']): Promise<void> {
  const { formatSize } = await import('../../lib/index.ts');
  for (const { id, backup, lost: ranges } of lost) {
    if (backup === null) {
      process.stdout.write(`lost: backup ${id}: its record cannot be read\n`);
      continue;
    }
    const bytes = ranges.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
    process.stdout.write(
      `lost: backup ${id} of ${backup.array}: ${formatSize(bytes)} of ${formatSize(backup.sizeBytes)}\n`,
    );
    for (const { offsetBytes, lengthBytes } of ranges.slice(0, 20))
      process.stdout.write(`  ${lengthBytes} bytes at ${offsetBytes}\n`);
    if (ranges.length > 20) process.stdout.write(`  and ${ranges.length - 20} more ranges\n`);
  }
}

async function prune(options: Options): Promise<void> {
  const { formatSize, RaidError } = await import('../../lib/index.ts');
  const { printJson, Progress } = await import('../progress.ts');
  const { openRepository, withLittleRoom } = await import('../repository.ts');
  const repository = await openRepository(options);
  const remove: string[] = [];
  for (const text of options.remove ?? []) {
    const found = await repository.find(text).catch((error: unknown) => {
      // One whose record cannot be read: only its whole id names it.
      if (error instanceof RaidError && error.code === 'BAD_REPOSITORY') return { id: text };
      throw error;
    });
    remove.push(found.id);
  }
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  const report = await repository
    .prune({
      keep: {
        ...(options.keepLast === undefined ? {} : { last: options.keepLast }),
        ...(options.keepDaily === undefined ? {} : { daily: options.keepDaily }),
        ...(options.keepWeekly === undefined ? {} : { weekly: options.keepWeekly }),
        ...(options.keepMonthly === undefined ? {} : { monthly: options.keepMonthly }),
      },
      remove,
      dryRun: options.dryRun === true,
      progress: ({ doneBytes, totalBytes }) => progress.show({ action: 'prune', doneBytes, totalBytes }),
    })
    .catch((error: unknown) => {
      throw withLittleRoom(error);
    })
    .finally(() => progress.clear());
  if (options.json === true) return printJson({ ...report, dryRun: options.dryRun === true });
  if (options.quiet === true) return;
  const would = options.dryRun === true ? 'would be ' : '';
  for (const { id, array, createdAt } of report.removed)
    process.stdout.write(`${would}removed: ${id} of ${array}, ${createdAt.slice(0, 16)}\n`);
  for (const { id, array, createdAt, because } of report.kept)
    process.stdout.write(
      `${would}kept: ${id} of ${array}, ${createdAt.slice(0, 16)} (${because.join(', ')})\n`,
    );
  process.stdout.write(
    `${formatSize(report.freedBytes)} ${would}freed: ${report.packsDeleted} packs deleted, ${report.packsRewritten} written anew\n`,
  );
}

async function repair(options: Options): Promise<void> {
  const { printJson, Progress } = await import('../progress.ts');
  const { openRepository } = await import('../repository.ts');
  const repository = await openRepository(options);
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  const report = await repository
    .repair({
      progress: ({ doneBytes, totalBytes }) => progress.show({ action: 'repair', doneBytes, totalBytes }),
    })
    .finally(() => progress.clear());
  if (report.damaged.length + report.lost.length > 0) process.exitCode = LOST;
  if (options.json === true) return printJson(report);
  if (options.quiet !== true)
    for (const name of report.repaired) process.stdout.write(`made again: ${name}\n`);
  for (const { name, why } of report.damaged) process.stdout.write(`beyond repair: ${name} ${why}\n`);
  await printLost(report.lost);
  if (options.quiet !== true && report.repaired.length + report.damaged.length === 0)
    process.stdout.write('nothing to repair\n');
}
