/** A list of buffers seen as one run of bytes. */

/** Views of the bytes [skipBytes, skipBytes + lengthBytes) of the run, at most `maxCount` of them; none is empty. */
export function viewsOf(
  buffers: readonly Uint8Array[],
  skipBytes: number,
  lengthBytes: number,
  maxCount = Number.POSITIVE_INFINITY,
): Uint8Array[] {
  const views: Uint8Array[] = [];
  let skip = skipBytes;
  let left = lengthBytes;
  for (const buffer of buffers) {
    if (left === 0 || views.length === maxCount) break;
    if (skip >= buffer.byteLength) {
      skip -= buffer.byteLength;
      continue;
    }
    const take = Math.min(buffer.byteLength - skip, left);
    views.push(take === buffer.byteLength ? buffer : buffer.subarray(skip, skip + take));
    skip = 0;
    left -= take;
  }
  return views;
}

/** Copies all of `from` into the run, `skipBytes` in. */
export function scatter(from: Uint8Array, buffers: readonly Uint8Array[], skipBytes: number): void {
  let done = 0;
  for (const view of viewsOf(buffers, skipBytes, from.byteLength)) {
    view.set(from.subarray(done, done + view.byteLength));
    done += view.byteLength;
  }
}

/** Fills all of `into` from the run, `skipBytes` in. */
export function gather(buffers: readonly Uint8Array[], skipBytes: number, into: Uint8Array): void {
  let done = 0;
  for (const view of viewsOf(buffers, skipBytes, into.byteLength)) {
    into.set(view, done);
    done += view.byteLength;
  }
}

/** The run as one buffer of its own. */
export function copyOf(buffers: readonly Uint8Array[], lengthBytes: number): Uint8Array {
  const [only] = buffers;
  if (buffers.length === 1 && only?.byteLength === lengthBytes) return new Uint8Array(only);
  const copy = new Uint8Array(lengthBytes);
  gather(buffers, 0, copy);
  return copy;
}
