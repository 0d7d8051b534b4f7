/** A few servers that lie on every check; client-hostile.slow.test.ts meets many. See client-hostile.ts. */
import { expect, test } from 'vitest';
import { runSeed } from '../conformance/seed.ts';
import { hostileSessions } from './client-hostile.ts';

test('whatever 2000 servers send, requests end, and no byte is where it does not belong', async () => {
  const tally = await hostileSessions(runSeed, 2000);
  // The servers are not so bad that nothing is tried: all four outcomes are common.
  for (const count of Object.values(tally)) expect(count).toBeGreaterThan(100);
});
