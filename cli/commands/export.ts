/** An array or a backup as an image that other programs know. */
import { type Command, Option } from 'commander';
import { examples, jsonOption, quietOption } from '../options.ts';
import type { RepositoryChoice } from '../repository.ts';

interface Options extends RepositoryChoice {
  readonly to?: string;
  readonly format?: 'raw' | 'qcow2';
  readonly since?: string;
  readonly backing?: string;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array; with --repo, id of a backup, or latest')
    .option('--to <file>', 'the image; what is there stays until the new one is whole')
    .addOption(
      new Option(
        '--format <format>',
        'of the image (default: qcow2 for a name that ends so, else raw)',
      ).choices(['raw', 'qcow2']),
    )
    .option('--repo <dir>', 'export a backup of this repository')
    .option('--passphrase-file <file>', 'its passphrase (or RAIDSIM_PASSPHRASE)')
    .option('--since <id>', 'only what differs from this backup, on top of an image of it; qcow2 only')
    .option('--backing <file>', 'that image')
    .addOption(jsonOption('what was written as one JSON document'))
    .addOption(quietOption())
    .action(async (what: string, options: Options) => {
      await run(what, options);
    });
  examples(
    command,
    [
      'raidsim export demo --to demo.qcow2',
      'raidsim export latest --repo /mnt/backups --to latest.img',
      'raidsim export 5e1f --repo /mnt/backups --to tue.qcow2 --since 09ab --backing mon.qcow2',
    ],
    'Zeros take no space in either format. To use a backup without copying it, serve it.',
  );
}

async function run(what: string, options: Options): Promise<void> {
  const { exportImage, formatSize, RaidError } = await import('../../lib/index.ts');
  const { Interrupt, INTERRUPTED, printJson, Progress } = await import('../progress.ts');
  const { duration } = await import('../render.ts');
  const { to } = options;
  if (to === undefined) throw new RaidError('BAD_ARGUMENT', 'say where the image goes: --to FILE');
  const format = options.format ?? (to.endsWith('.qcow2') ? 'qcow2' : 'raw');
  using interrupt = new Interrupt();
  const source = await open(what, to, options);
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  let writtenBytes = 0;
  let isDone = false;
  try {
    isDone = await exportImage(source.device, to, {
      format,
      ...(source.backing === null ? {} : { backing: source.backing }),
      signal: interrupt.signal,
      progress: (step) => {
        ({ writtenBytes } = step);
        progress.show({ action: 'export', doneBytes: step.doneBytes, totalBytes: step.totalBytes });
      },
    });
  } finally {
    progress.clear();
    await source.close();
  }
  if (!isDone) process.exitCode = INTERRUPTED;
  const { sizeBytes } = source.device.limits;
  if (options.json === true) return printJson({ to, format, sizeBytes, writtenBytes, interrupted: !isDone });
  if (!isDone) process.stderr.write(`interrupted: ${to} was not written\n`);
  else if (options.quiet !== true) {
    process.stdout.write(
      `exported ${formatSize(sizeBytes)} to ${to} (${format}), ${formatSize(writtenBytes)} of it not zeros or unchanged, in ${duration(progress.seconds)}\n`,
    );
  }
}

interface Exported {
  readonly device: import('../../lib/index.ts').Device;
  readonly backing: import('../../lib/index.ts').Backing | null;
  readonly close: () => Promise<void>;
}

async function open(what: string, to: string, options: Options): Promise<Exported> {
  const { RaidError } = await import('../../lib/index.ts');
  const { openSource } = await import('../image.ts');
  if ((options.since === undefined) !== (options.backing === undefined))
    throw new RaidError(
      'BAD_ARGUMENT',
      '--since and --backing belong together: a backup, and an image of it',
    );
  if (options.repo === undefined) {
    if (options.since !== undefined)
      throw new RaidError('BAD_ARGUMENT', '--since compares backups: it needs --repo');
    return { ...(await openSource(what, to)), backing: null };
  }
  const { openRepository, saysUnheld } = await import('../repository.ts');
  const repository = await openRepository(options);
  // One and the same throughout: what is the latest can change.
  const { id } = await repository.find(what);
  const held = { hold: true, unheld: saysUnheld(repository, id) };
  const device = await repository.openBackup(id, held);
  const close = (): Promise<void> => device.close();
  if (options.since === undefined || options.backing === undefined) return { device, backing: null, close };
  try {
    const changed = await repository.changedBetween(options.since, id, { ...held, unheld: () => undefined });
    return {
      device,
      backing: {
        path: await pathFrom(to, options.backing),
        format: await formatOf(options.backing),
        changed,
      },
      close,
    };
  } catch (error) {
    await close().catch(() => undefined);
    throw error;
  }
}

/** An image finds its backing file from where it is itself. */
async function pathFrom(image: string, backing: string): Promise<string> {
  const { dirname, isAbsolute, relative, resolve } = await import('node:path');
  return isAbsolute(backing) ? backing : relative(resolve(dirname(image)), resolve(backing));
}

async function formatOf(path: string): Promise<'raw' | 'qcow2'> {
  const { open: openFile } = await import('node:fs/promises');
  const file = await openFile(path);
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(4), 0, 4, 0);
    return bytesRead === 4 && buffer.readUInt32BE(0) === 0x514649fb ? 'qcow2' : 'raw';
  } finally {
    await file.close();
  }
}
