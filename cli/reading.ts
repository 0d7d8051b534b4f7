/** Bytes out of an array, or out of a snapshot of it, and what could not be read. */
import { formatSize, parseSize, placeOf, RaidError, SNAPSHOT_STORE, wholeSource } from '../lib/index.ts';
import { commandLine, pathIn, statOf } from './array.ts';
import type { ReadingOptions } from './options.ts';
import { INTERRUPTED, Interrupt, Progress, untilAsked } from './progress.ts';
import { reach, type SnapshotBytes } from './reach.ts';
import { duration } from './render.ts';
import { type ByteRange, fileSink, joined, readPieces, standardOutput } from './transfer.ts';

const DATA_LOST = 5;
/** More with --json. */
const LISTED = 100;

/** The verb `read`, of an array or of a snapshot of it. */
export async function takeOut(
  folder: string,
  options: ReadingOptions,
  snapshot: string | null,
): Promise<void> {
  const offsetBytes = parseSize(options.offset ?? '0');
  const wantedBytes = options.length === undefined ? null : parseSize(options.length);
  if (wantedBytes === 0) throw new RaidError('ZERO_LENGTH', '--length 0: there is nothing to read');
  const to = options.to ?? (process.stdout.isTTY ? null : '-');
  if (to === null) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `the bytes would go to this terminal; say where they go (--to - if that is meant):${commandLine(...(snapshot === null ? ['read', folder] : ['snapshot', 'read', folder, snapshot]), '--to', 'FILE')}`,
    );
  }
  using interrupt = new Interrupt();
  const reached = await reach(folder);
  const { manifest } = reached;
  const progress = new Progress({ json: false, quiet: options.quiet === true || options.json === true });
  let doneBytes = 0;
  let totalBytes = 0;
  let seconds = 0;
  const lost: ByteRange[] = [];
  const lose = options.keepGoing === true ? (range: ByteRange) => void lost.push(range) : null;
  let opened: SnapshotBytes | null = null;
  try {
    opened = snapshot === null ? null : await reached.openSnapshot(snapshot);
    const array = opened ?? reached.bytes;
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
    const wholeTarget = wholeSource(to);
    for (const source of [...manifest.members, SNAPSHOT_STORE]) {
      const place = await placeOf(pathIn(folder, source));
      const member = place === null ? null : await statOf(place.path);
      const isSame =
        target !== null && member !== null && target.ino === member.ino && target.dev === member.dev;
      // A file called like a partition of a disk would be opened in its place.
      if (isSame || wholeTarget === wholeSource(source, folder))
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
    await opened?.close();
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
