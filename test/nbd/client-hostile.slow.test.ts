/** Many servers that lie; see client-hostile.ts. */
import { expect, test } from 'vitest';
import { runSeed } from '../conformance/seed.ts';
import { hostileSessions } from './client-hostile.ts';

test('whatever 100000 servers send, requests end, no byte is where it does not belong, and nothing is left', async () => {
  await hostileSessions(runSeed, 5000);
  const before = process.memoryUsage().heapUsed;
  const resourcesBefore = process.getActiveResourcesInfo().length;
  const tally = await hostileSessions(runSeed + 5000, 95_000);
  for (const count of Object.values(tally)) expect(count).toBeGreaterThan(5000);
  // A kilobyte that each of them left would be 93 MiB; garbage that was not collected yet is less.
  expect((process.memoryUsage().heapUsed - before) / 2 ** 20).toBeLessThan(64);
  expect(process.getActiveResourcesInfo().length).toBeLessThanOrEqual(resourcesBefore + 2);
});
