/** An array as it was: taken at once, kept while it is written to, read, and gone back to. */
import type { Command } from 'commander';
import {
  actionArgument,
  examples,
  jsonOption,
  quietOption,
  type ReadingOptions,
  readingOptions,
  SIZES,
} from '../options.ts';

const actions = ['create', 'list', 'read', 'rollback', 'merge', 'delete'] as const;
type Action = (typeof actions)[number];

interface Options extends ReadingOptions {
  readonly limit?: string;
  readonly force?: boolean;
  readonly all?: boolean;
  readonly clone?: boolean;
}

const common: readonly (keyof Options)[] = ['json', 'quiet'];

/** What an action takes besides. */
const taken: Readonly<Record<Action, readonly (keyof Options)[]>> = {
  create: ['limit'],
  list: [],
  read: ['to', 'offset', 'length', 'keepGoing'],
  rollback: ['force'],
  merge: ['force'],
  delete: ['all', 'force', 'clone'],
};

export function define(command: Command): void {
  command
    .addArgument(
      actionArgument('snapshot', actions, {
        ls: 'list',
        rm: 'delete',
        remove: 'delete',
        take: 'create',
        restore: 'rollback',
        revert: 'rollback',
        clone: '`raidsim serve ARRAY --clone NAME`',
        export: '`raidsim serve ARRAY --snapshot NAME`',
        mount: '`raidsim serve ARRAY --snapshot NAME`',
        serve: '`raidsim serve ARRAY --snapshot NAME`',
      }),
    )
    .argument('<array>', 'folder of the array')
    .argument('[name]', 'of the snapshot: letters, digits and _ . : + -')
    .optionsGroup('Options of create, for the first snapshot:')
    .option('--limit <size>', 'what the copies of all snapshots may take (default: a fifth of the array)')
    .optionsGroup('Options of read:');
  readingOptions(command)
    .optionsGroup('Options of rollback and merge, and of delete --all:')
    .option(
      '--force',
      'although clients are connected, who would not notice; to finish a rollback in which something else wrote, or let go of one; to a snapshot that lacks a place, which is left as it is; with what was written to clones',
    )
    .optionsGroup('Options of delete:')
    .option('--all', 'all snapshots and their store, also one that cannot be used')
    .option('--clone', 'not the snapshot, but what was written to its clone (serve --clone)')
    .optionsGroup('Options:')
    .addOption(jsonOption('one JSON document'))
    .addOption(quietOption())
    .action(async (action: Action, folder: string, name: string | undefined, options: Options) => {
      await run(action, folder, name ?? null, options);
    });
  examples(
    command,
    [
      'raidsim snapshot create demo before-upgrade',
      'raidsim snapshot list demo',
      'raidsim snapshot read demo before-upgrade --to before.img',
      'raidsim snapshot rollback demo before-upgrade',
      'raidsim snapshot merge demo before-upgrade',
      'raidsim snapshot delete demo before-upgrade',
      'raidsim serve demo --snapshot before-upgrade',
      'raidsim serve demo --clone before-upgrade',
    ],
    `A snapshot takes no room by itself: what is overwritten afterwards is copied first, into one file in the folder of the
array, snapshots.store. When that is full, the oldest snapshot becomes invalid, and the array goes on. All of this works on an
array that is served, too.

rollback makes the array what it was. What was written since is lost, but for other snapshots, which stay as they are.
merge does the same, and deletes the snapshot then: the array goes on from there. To go on without going back, delete it: what older
snapshots need of it stays with them.

list says what the clones of snapshots take (CLONE), which serve --clone makes.

A place that the array cannot read can be written over, which mends it; snapshots then lack it (LOST), and say so when it is read.

While there is a store, write to the array through raidsim only. Where mdadm or the kernel had it in between,
that is noticed, and the snapshots are invalid; they cannot be read (exit 5). Not so with raid0 and linear: md
writes to those without a trace in their superblocks, and nobody can tell afterwards. list says which it is.

${SIZES}`,
  );
}

async function run(action: Action, folder: string, name: string | null, options: Options): Promise<void> {
  const { RaidError } = await import('../../lib/index.ts');
  const { checkFolder, commandLine } = await import('../array.ts');
  const known = [...common, ...taken[action]];
  for (const option of Object.keys(options) as (keyof Options)[]) {
    if (known.includes(option)) continue;
    const flag = `--${option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    throw new RaidError('BAD_ARGUMENT', `snapshot ${action} does not take ${flag}`);
  }
  await checkFolder(folder, name === null ? [] : [name]);
  if (options.clone === true && options.all === true)
    throw new RaidError(
      'BAD_ARGUMENT',
      'snapshot delete takes --clone, of one snapshot, or --all, and not both',
    );
  if (action === 'list' || (action === 'delete' && options.all === true)) {
    if (name !== null)
      throw new RaidError(
        'BAD_ARGUMENT',
        action === 'list'
          ? `snapshot list tells of all of them, and takes no name, "${name}"`
          : `snapshot delete --all deletes all of them, and takes no name, "${name}"`,
      );
    return action === 'list' ? await list(folder, options) : await deleteAll(folder, options);
  }
  if (action === 'delete' && options.force === true)
    throw new RaidError(
      'BAD_ARGUMENT',
      'snapshot delete takes --force with --all only: what one snapshot held is needed by no write',
    );
  if (name === null) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `say which snapshot:${commandLine('snapshot', action, folder, 'NAME')}`,
    );
  }
  if (action === 'read') {
    const { takeOut } = await import('../reading.ts');
    return await takeOut(folder, options, name);
  }
  const works = { create, rollback, merge: rollback, delete: deleteOne } as const;
  return await works[action as keyof typeof works](folder, name, options, action === 'merge');
}

async function create(folder: string, name: string, options: Options): Promise<void> {
  const { formatSize, parseSize } = await import('../../lib/index.ts');
  const { printJson } = await import('../progress.ts');
  const { inspect, reach, resultOf } = await import('../reach.ts');
  const limitBytes = options.limit === undefined ? null : parseSize(options.limit);
  const reached = await reach(folder, { writes: true });
  try {
    await resultOf(reached.run('snapshotCreate', { name, limitBytes }));
  } finally {
    await reached.close();
  }
  const { status, snapshotUsage } = await inspect(folder);
  const taken = status.snapshots?.find((each) => each.name === name);
  if (options.json === true) return printJson({ ...taken, ...snapshotUsage });
  if (options.quiet === true || snapshotUsage === null) return;
  if (witnessOf(status.level) === null) process.stderr.write(`${unwitnessed(status.level)}\n`);
  const { limitBytes: most, usedBytes } = snapshotUsage;
  process.stdout.write(
    `snapshot ${name} of ${status.name} is taken; copies take ${formatSize(usedBytes)} of ${formatSize(most)}\n`,
  );
}

async function list(folder: string, options: Options): Promise<void> {
  const { clonesIn, formatSize, RaidError } = await import('../../lib/index.ts');
  const { shellWord } = await import('../array.ts');
  const { printJson } = await import('../progress.ts');
  const { inspect } = await import('../reach.ts');
  const { paint, table } = await import('../render.ts');
  const { status, snapshotUsage, snapshotProblem } = await inspect(folder);
  // They are files of the folder, whoever has the array.
  const clones = await clonesIn(folder, status.sizeBytes);
  const { snapshots = [] } = status;
  const witness = witnessOf(status.level);
  const problem = snapshotProblem === null ? null : RaidError.fromRecord(snapshotProblem);
  // Of a store that cannot be used nothing is known.
  if (problem !== null && (snapshots.length === 0 || options.quiet === true)) throw problem;
  if (options.json === true) {
    return printJson({
      snapshots,
      usage: snapshotUsage,
      witness,
      clones,
      ...(problem === null ? {} : { problem: problem.message }),
    });
  }
  if (options.quiet === true) return;
  const left = clones.filter(({ snapshot }) => !snapshots.some(({ name }) => name === snapshot));
  for (const { snapshot, takenBytes } of left) {
    process.stderr.write(
      `there is a clone of ${snapshot}, which is gone; it takes ${formatSize(takenBytes)}; to throw it away: raidsim snapshot delete ${shellWord(folder)} ${snapshot} --clone\n`,
    );
  }
  if (snapshots.length === 0) {
    process.stderr.write(`${status.name} has no snapshots\n`);
    return;
  }
  const hasLoss = snapshots.some(({ lostBytes }) => lostBytes > 0);
  const hasClone = clones.length > left.length;
  const cloneOf = (name: string): string => {
    const clone = clones.find(({ snapshot }) => snapshot === name);
    return clone === undefined ? '' : formatSize(clone.takenBytes);
  };
  const rows = snapshots.map(({ name, createdAt, state, uniqueBytes, sharedBytes, lostBytes }) => [
    name,
    createdAt.replace('T', ' ').slice(0, 19),
    state === 'valid' ? state : paint('red', state),
    formatSize(uniqueBytes),
    formatSize(sharedBytes),
    ...(hasLoss ? [lostBytes === 0 ? '' : paint('red', formatSize(lostBytes))] : []),
    ...(hasClone ? [cloneOf(name)] : []),
  ]);
  const columns = [
    { title: 'NAME' },
    { title: 'TIME (UTC)' },
    { title: 'STATE' },
    { title: 'OWN', align: 'right' },
    { title: 'SHARED', align: 'right' },
    ...(hasLoss ? [{ title: 'LOST', align: 'right' } as const] : []),
    ...(hasClone ? [{ title: 'CLONE', align: 'right' } as const] : []),
  ] as const;
  process.stdout.write(`${table(columns, rows)}\n`);
  if (snapshotUsage !== null) {
    const { usedBytes, limitBytes } = snapshotUsage;
    process.stdout.write(`copies take ${formatSize(usedBytes)} of ${formatSize(limitBytes)}\n`);
  }
  if (witness === null) process.stdout.write(`${unwitnessed(status.level)}\n`);
  if (problem !== null) throw problem;
}

/**
 * What gives away that something wrote past the store. md keeps a raid0 or a linear array neither clean nor dirty: assembled, written and
 * stopped, its superblocks are as they were, `events` and time included.
 */
function witnessOf(level: string): 'superblocks' | null {
  return level === 'raid0' || level === 'linear' ? null : 'superblocks';
}

function unwitnessed(level: string): string {
  return `nothing tells whether mdadm or the kernel wrote to a ${level} array in between: keep it to raidsim, or its snapshots are wrong`;
}

async function rollback(folder: string, name: string, options: Options, isMerge: boolean): Promise<void> {
  const { formatSize } = await import('../../lib/index.ts');
  const { printJson, Progress } = await import('../progress.ts');
  const { reach, resultOf } = await import('../reach.ts');
  const reached = await reach(folder, { writes: true });
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  let writtenBytes = 0;
  let lostBytes = 0;
  try {
    const snapshots = await resultOf(reached.run('snapshotList', undefined));
    lostBytes = snapshots.find((each) => each.name === name)?.lostBytes ?? 0;
    for await (const { doneBytes, totalBytes } of reached.run('snapshotRollback', {
      name,
      force: options.force === true,
      isMerge,
    })) {
      writtenBytes = doneBytes;
      progress.show({ action: 'rollback', doneBytes, totalBytes });
    }
  } finally {
    progress.clear();
    await reached.close();
  }
  if (options.json === true) return printJson({ name, writtenBytes, lostBytes });
  if (options.quiet === true) return;
  process.stdout.write(
    `${reached.facts.name} is what it was at snapshot ${name}${isMerge ? ', which is deleted' : ''}; ${formatSize(writtenBytes)} written back\n`,
  );
  if (lostBytes > 0) process.stderr.write(`${formatSize(lostBytes)} that it lacks are as they were before\n`);
}

async function deleteOne(folder: string, name: string, options: Options): Promise<void> {
  const { printJson } = await import('../progress.ts');
  const { reach, resultOf } = await import('../reach.ts');
  const reached = await reach(folder, { writes: true });
  try {
    if (options.clone === true) await resultOf(reached.run('cloneDelete', { name }));
    else await resultOf(reached.run('snapshotDelete', { name, keepTracking: false }));
  } finally {
    await reached.close();
  }
  const what = options.clone === true ? 'the clone of snapshot' : 'snapshot';
  if (options.json === true)
    return printJson({ [options.clone === true ? 'clonesDeleted' : 'deleted']: [name] });
  if (options.quiet !== true) process.stdout.write(`${what} ${name} of ${reached.facts.name} is deleted\n`);
}

async function deleteAll(folder: string, options: Options): Promise<void> {
  const { printJson } = await import('../progress.ts');
  const { inspect, reach, resultOf } = await import('../reach.ts');
  const names = ((await inspect(folder)).status.snapshots ?? []).map(({ name }) => name);
  const reached = await reach(folder, { writes: true });
  try {
    await resultOf(reached.run('snapshotDeleteAll', { force: options.force === true }));
  } finally {
    await reached.close();
  }
  if (options.json === true) return printJson({ deleted: names });
  if (options.quiet !== true)
    process.stdout.write(`${reached.facts.name} has no snapshots any more, and no store for them\n`);
}
