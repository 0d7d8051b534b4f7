/** Bytes into an array. */
import { createReadStream } from 'node:fs';
import type { Command } from 'commander';
import { examples, jsonOption, quietOption, SIZES } from '../options.ts';
import type { Reached } from '../reach.ts';

interface Options {
  readonly offset: string;
  readonly length?: string;
  readonly from?: string;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const STREAM_BYTES = 1024 * 1024;

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .option(
      '--from <file>',
      'where the bytes come from; - for standard input (default: -, where it is a pipe)',
    )
    .option('--offset <size>', 'where in the array the first byte goes', '0')
    .option('--length <size>', 'no more than so many bytes (default: all there are)')
    .addOption(jsonOption('what was written as one JSON document'))
    .addOption(quietOption())
    .action(async (folder: string, options: Options) => {
      await run(folder, options);
    });
  examples(
    command,
    [
      'raidsim write demo --from disk.iso',
      'tar c photos | raidsim write demo',
      'raidsim write demo --from boot.bin --offset 1M --length 446',
    ],
    `When it says that bytes are written they are on the disks, not only in a cache.

${SIZES}`,
  );
}

async function run(folder: string, options: Options): Promise<void> {
  const { formatSize, parseSize, RaidError } = await import('../../lib/index.ts');
  const { checkFile, commandLine, statOf } = await import('../array.ts');
  const { reach } = await import('../reach.ts');
  const { Interrupt, INTERRUPTED, printJson, Progress, untilAsked } = await import('../progress.ts');
  const { piecesOf, writePieces } = await import('../transfer.ts');
  const { duration } = await import('../render.ts');

  const offsetBytes = parseSize(options.offset);
  const limitBytes = options.length === undefined ? null : parseSize(options.length);
  const from = options.from ?? (process.stdin.isTTY ? null : '-');
  if (from === null) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `say where the bytes come from:${commandLine('write', folder, '--from', 'FILE')}`,
    );
  }
  let knownBytes: number | null = limitBytes;
  if (from !== '-') {
    await checkFile(from, 'a file to read');
    const found = await statOf(from);
    if (found?.isFile() === true) knownBytes = Math.min(found.size, limitBytes ?? found.size);
  }
  const nothing = (): never => {
    throw new RaidError('ZERO_LENGTH', `${nameOf(from)} is empty: nothing was written`);
  };
  if (limitBytes === 0) throw new RaidError('ZERO_LENGTH', '--length 0: there is nothing to write');
  if (knownBytes === 0) nothing();

  using interrupt = new Interrupt();
  const reached = await reach(folder, { writes: true });
  const { bytes: array } = reached;
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  let written = 0;
  let seconds = 0;
  let invalid: readonly string[] = [];
  try {
    const valid = await validSnapshots(reached);
    const roomBytes = array.limits.sizeBytes - offsetBytes;
    if (roomBytes <= 0 || (knownBytes !== null && from !== '-' && knownBytes > roomBytes)) {
      const room =
        roomBytes <= 0
          ? `${array.name} ends at ${array.limits.sizeBytes} (${formatSize(array.limits.sizeBytes)})`
          : `from offset ${offsetBytes} on, ${array.name} has room for ${roomBytes} (${formatSize(roomBytes)}); --length ${roomBytes} writes as much as fits`;
      const what =
        knownBytes === null
          ? nameOf(from)
          : `${knownBytes} bytes (${formatSize(knownBytes)}) of ${nameOf(from)}`;
      throw new RaidError('OUT_OF_RANGE', `cannot write ${what} at ${offsetBytes}: ${room}`, { offsetBytes });
    }
    const stream: AsyncIterable<Uint8Array> =
      from === '-' ? process.stdin : createReadStream(from, { highWaterMark: STREAM_BYTES });
    const bounded = limitBytes === null ? stream : firstBytes(stream, limitBytes);
    const pieces = untilAsked(piecesOf(bounded, array.limits.preferredBytes, offsetBytes), interrupt.signal);
    await writePieces(array, pieces, offsetBytes, (doneBytes) => {
      written = doneBytes;
      progress.show({ action: 'write', doneBytes, totalBytes: knownBytes });
    });
    if (written > 0) await array.flush();
    if (valid.length > 0) {
      const still = await validSnapshots(reached);
      invalid = valid.filter((name) => !still.includes(name));
    }
  } finally {
    progress.clear();
    seconds = progress.seconds;
    await reached.close();
    if (from === '-') process.stdin.destroy();
  }
  const isInterrupted = interrupt.isAsked && (knownBytes === null || written < knownBytes);
  if (isInterrupted) process.exitCode = INTERRUPTED;
  else if (written === 0) nothing();
  const rate = seconds < 0.05 ? 0 : Math.round(written / seconds);
  if (options.json === true) {
    return printJson({
      offsetBytes,
      lengthBytes: written,
      seconds: Math.round(seconds * 1000) / 1000,
      interrupted: isInterrupted,
      ...(invalid.length > 0 ? { invalidSnapshots: invalid } : {}),
    });
  }
  if (invalid.length > 0 && options.quiet !== true) {
    const which = `snapshot${invalid.length === 1 ? '' : 's'} ${invalid.join(', ')}`;
    process.stderr.write(
      `${which} became invalid meanwhile: what was overwritten found no place among the copies (raidsim snapshot list ${folder})\n`,
    );
  }
  const range = `${formatSize(written)} at ${offsetBytes}`;
  if (isInterrupted) {
    process.stderr.write(`interrupted: ${range} are written (${written} bytes), the rest is as it was\n`);
  } else if (options.quiet !== true) {
    process.stdout.write(
      `wrote ${range}, in ${duration(seconds)}${rate === 0 ? '' : ` (${formatSize(rate)}/s)`}\n`,
    );
  }
}

async function validSnapshots({ facts, run }: Reached): Promise<readonly string[]> {
  if (!facts.mayHaveSnapshots) return [];
  const { resultOf } = await import('../reach.ts');
  const list = await resultOf(run('snapshotList', undefined));
  return list.filter(({ state }) => state === 'valid').map(({ name }) => name);
}

async function* firstBytes(
  stream: AsyncIterable<Uint8Array>,
  limitBytes: number,
): AsyncGenerator<Uint8Array> {
  let left = limitBytes;
  for await (const chunk of stream) {
    yield chunk.subarray(0, left);
    left -= chunk.byteLength;
    if (left <= 0) return;
  }
}

function nameOf(from: string): string {
  return from === '-' ? 'standard input' : from;
}
