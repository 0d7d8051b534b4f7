/**
 * Reads a socket into memory that the reader names.
 *
 * By itself Node reads up to 64 KiB at a time into memory that it allocates for each read and cuts to what has come: of a
 * stream of large writes that costs more than the copy out of the kernel. `onread` of net.Socket takes memory from the
 * reader instead, but only when the socket is made, and a server's sockets are made by the server. So another socket is made
 * over the handle of the first. That the handle can be passed on is no part of Node's documented interface; where it is not
 * as expected the stream's own events are used, and everything works, slower.
 */
import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';

export interface Reception {
  /** Where the next bytes are to go, asked for before each read; the read may be a while later. Not empty. */
  room(): Uint8Array;
  /** What has come, in the room that was given last, or, where the stream cannot use it, anywhere. */
  received(bytes: Uint8Array): void;
}

interface Handle {
  readonly useUserBuffer?: unknown;
}

/** The stream to go on with, which takes the place of the one given. It has no `data` events for others. */
export function receiveInto(stream: Duplex, reception: Reception): Duplex {
  const handle = takeHandle(stream);
  if (handle === null) {
    stream.on('data', (bytes: Buffer) => reception.received(bytes));
    return stream;
  }
  const options = {
    handle,
    allowHalfOpen: stream.allowHalfOpen,
    onread: {
      buffer: () => reception.room(),
      callback: (lengthBytes: number, room: Uint8Array) => {
        reception.received(room.subarray(0, lengthBytes));
        // Who wants a pause says so to the stream.
        return true;
      },
    },
  };
  const successor = new Socket(options);
  // The server counts its connections by the sockets that it has made.
  successor.once('close', () => stream.destroy());
  successor.resume();
  return successor;
}

/** Null where there is none to be had. */
function takeHandle(stream: Duplex): Handle | null {
  // A subclass of Socket, as TLS has one, does more to bytes than to pass them on.
  if (Object.getPrototypeOf(stream) !== Socket.prototype) return null;
  const socket = stream as unknown as { _handle?: Handle | null; readonly bytesRead: number };
  const handle = socket._handle ?? null;
  if (handle === null || typeof handle.useUserBuffer !== 'function' || socket.bytesRead > 0) return null;
  socket._handle = null;
  return handle;
}
