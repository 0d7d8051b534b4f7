/** Many servers that lie; see client-hostile.ts. */
import { expect, test } from 'vitest';
import { runSeed } from '../conformance/seed.ts';
import { until } from '../engine/members.ts';
import { hostileSessions } from './client-hostile.ts';
import { heldHandles, heldMemory } from './held.ts';

test('whatever 100000 servers send, requests end, no byte is where it does not belong, and nothing is left', async () => {
  await hostileSessions(runSeed, 5000);
  const before = { memory: await heldMemory(), handles: heldHandles() };
  const tally = await hostileSessions(runSeed + 5000, 95_000);
  for (const count of Object.values(tally)) expect(count).toBeGreaterThan(5000);
  // A hundred bytes that each of them left would be 9 MiB.
  expect(((await heldMemory()) - before.memory) / 2 ** 20).toBeLessThan(4);
  await until(() => heldHandles() <= before.handles);
});
