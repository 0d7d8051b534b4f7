/** What this process holds: to see that something left nothing behind. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { turn } from './wire.ts';

/** Of memory, without what only has not been collected yet. */
export async function heldMemory(): Promise<number> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let count = 0; count < 3; count += 1) {
    collect();
    await turn();
  }
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** What keeps a process alive. The runner of tests has some for a moment, now and then: who looks waits until those have gone. */
export function heldHandles(): number {
  return process.getActiveResourcesInfo().length;
}
