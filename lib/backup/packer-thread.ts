/** A thread that packs. What it is told comes one after the other; what has to wait for a room keeps its order. */
import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../errors.ts';
import type { PackFile } from './pack.ts';
import { hashAll, Packer } from './packer.ts';
import type { PackerAnswer, PackerBirth, PackerOrder } from './packer-message.ts';
import { loadSum } from './seal.ts';

type Storing = Extract<PackerOrder, { kind: 'store' }>;

async function main({ trays, trayBytes, rooms, key, packBytes }: PackerBirth): Promise<void> {
  const port = parentPort;
  assert(port !== null, 'this is a thread of packer-threads.ts');
  const packer = new Packer({ key, sum: await loadSum() }, packBytes);
  const waiting: (Storing | { readonly kind: 'finish' })[] = [];
  /** Of the order that comes first, how many chunks are in packs. */
  let done = 0;
  let room = 0;

  const tell = (answer: PackerAnswer): void => port.postMessage(answer);
  const hand = (pack: PackFile | null): void => {
    if (pack === null) return;
    const { name, bytes, table, sum } = pack;
    const outgrown = bytes.buffer === rooms[room] ? null : bytes;
    tell({ kind: 'pack', room, name, fileBytes: bytes.byteLength, outgrown, table: table.bytes, sum });
  };
  const trayOf = (tray: number): Uint8Array => new Uint8Array(trays, tray * trayBytes, trayBytes);

  /** False where it waits for a room. */
  const store = ({ tray, cuts }: Storing): boolean => {
    const bytes = trayOf(tray);
    for (; done < cuts.length; done += 1) {
      if (packer.needsRoom) return false;
      const { at, lengthBytes, id } = cuts[done]!;
      hand(packer.add(id, bytes.subarray(at, at + lengthBytes)));
    }
    done = 0;
    tell({ kind: 'stored', tray });
    return true;
  };
  const work = (): void => {
    for (let order = waiting[0]; order !== undefined; order = waiting[0]) {
      if (order.kind === 'finish') {
        hand(packer.finish());
        tell({ kind: 'finished' });
      } else if (!store(order)) return;
      waiting.shift();
    }
  };

  port.on('message', (order: PackerOrder) => {
    switch (order.kind) {
      case 'hash':
        tell({ kind: 'hashed', tray: order.tray, ids: hashAll(trayOf(order.tray), order.cuts) });
        return;
      case 'room':
        room = order.room;
        packer.open({ name: order.name, memory: new Uint8Array(rooms[room]!) });
        break;
      default:
        waiting.push(order);
    }
    work();
  });
  tell({ kind: 'ready' });
}

await main(workerData as PackerBirth);
