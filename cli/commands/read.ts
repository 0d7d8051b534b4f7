/** Bytes out of an array. */
import type { Command } from 'commander';
import { examples, jsonOption, quietOption, SIZES } from '../options.ts';
import type { ByteRange } from '../transfer.ts';

const DATA_LOST = 5;
/** More with --json. */
const LISTED = 100;

interface Options {
  readonly offset: string;
  readonly length?: string;
  readonly to?: string;
  readonly keepGoing?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .option('--to <file>', 'where the bytes go; - for standard output (default: -, where it is a pipe)')
    .option('--offset <size>', 'the first byte', '0')
    .option('--length <size>', 'so many bytes (default: to the end)')
    .option('--keep-going', 'where data is lost, write zeros, list the place and go on')
    .addOption(
      jsonOption(
        'what was read as one JSON document; on standard error where the bytes go to standard output',
      ),
    )
    .addOption(quietOption())
    .action(async (folder: string, options: Options) => {
      await run(folder, options);
    });
  examples(
    command,
    [
      'raidsim read demo --to copy.img',
      'raidsim read demo | sha256sum',
      'raidsim read demo --offset 1M --length 4K --to - | xxd | head',
      'raidsim read demo --to rescued.img --keep-going',
    ],
    `A degraded array is read as any other: what is missing is computed. Where that cannot be, nothing is made up: exit 5,
and exactly the lost range is named. --keep-going reads the rest as well: zeros stand for what is lost, which is listed on
standard error, and still exit 5.

${SIZES}`,
  );
}

async function run(folder: string, options: Options): Promise<void> {
  const { formatSize, parseSize, RaidError } = await import('../../lib/index.ts');
  const { commandLine, pathIn, statOf } = await import('../array.ts');
  const { reach } = await import('../reach.ts');
  const { Interrupt, INTERRUPTED, Progress, untilAsked } = await import('../progress.ts');
  const { fileSink, joined, readPieces, standardOutput } = await import('../transfer.ts');
  const { duration } = await import('../render.ts');

  const offsetBytes = parseSize(options.offset);
  const wantedBytes = options.length === undefined ? null : parseSize(options.length);
  if (wantedBytes === 0) throw new RaidError('ZERO_LENGTH', '--length 0: there is nothing to read');
  const to = options.to ?? (process.stdout.isTTY ? null : '-');
  if (to === null) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `the bytes would go to this terminal; say where they go (--to - if that is meant):${commandLine('read', folder, '--to', 'FILE')}`,
    );
  }
  using interrupt = new Interrupt();
  const reached = await reach(folder);
  const { bytes: array, manifest } = reached;
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  let doneBytes = 0;
  let totalBytes = 0;
  let seconds = 0;
  const lost: ByteRange[] = [];
  const lose = options.keepGoing === true ? (range: ByteRange) => void lost.push(range) : null;
  try {
    const { sizeBytes } = array.limits;
    totalBytes = wantedBytes ?? sizeBytes - offsetBytes;
    if (offsetBytes >= sizeBytes || totalBytes > sizeBytes - offsetBytes) {
      const what = wantedBytes === null ? 'anything' : `${wantedBytes} bytes`;
      throw new RaidError(
        'OUT_OF_RANGE',
        `cannot read ${what} at ${offsetBytes}: ${array.name} ends at ${sizeBytes} (${formatSize(sizeBytes)})`,
        { offsetBytes },
      );
    }
    const target = to === '-' ? null : await statOf(to);
    for (const source of manifest.members) {
      const member = await statOf(pathIn(folder, source));
      if (target !== null && member !== null && target.ino === member.ino && target.dev === member.dev)
        throw new RaidError(
          'BAD_ARGUMENT',
          `${to} is a disk of ${array.name} itself, and would be overwritten`,
        );
    }
    const sink = to === '-' ? standardOutput() : await fileSink(to);
    try {
      for await (const piece of untilAsked(
        readPieces(array, offsetBytes, totalBytes, lose),
        interrupt.signal,
      )) {
        await sink.write(piece);
        doneBytes += piece.byteLength;
        progress.show({ action: 'read', doneBytes, totalBytes });
      }
    } finally {
      await sink.close();
    }
  } finally {
    progress.clear();
    seconds = progress.seconds;
    await reached.close();
  }
  const isInterrupted = interrupt.isAsked && doneBytes < totalBytes;
  // Of what has been read: a piece that was on its way when it was interrupted does not count.
  const places = joined(lost).filter((range) => range.offsetBytes < offsetBytes + doneBytes);
  process.exitCode = isInterrupted ? INTERRUPTED : places.length > 0 ? DATA_LOST : 0;
  const out = to === '-' ? process.stderr : process.stdout;
  if (options.json === true) {
    const document = {
      offsetBytes,
      lengthBytes: doneBytes,
      seconds: Math.round(seconds * 1000) / 1000,
      interrupted: isInterrupted,
      ...(lose === null ? {} : { lost: places }),
    };
    out.write(`${JSON.stringify(document, null, 2)}\n`);
    return;
  }
  for (const place of places.slice(0, LISTED))
    process.stderr.write(`lost: ${place.lengthBytes} bytes at ${place.offsetBytes}\n`);
  if (places.length > LISTED)
    process.stderr.write(`and ${places.length - LISTED} places more; --json lists all\n`);
  const rate = seconds < 0.05 ? '' : ` (${formatSize(Math.round(doneBytes / seconds))}/s)`;
  const range = `${formatSize(doneBytes)} at ${offsetBytes}`;
  if (isInterrupted) process.stderr.write(`interrupted: ${range} were read (${doneBytes} bytes)\n`);
  else if (options.quiet !== true && to !== '-')
    out.write(`read ${range} to ${to}, in ${duration(seconds)}${rate}\n`);
}
