import { expect, test } from 'vitest';
import { OthersWatch } from '../../bench/others.ts';

test('what this process does itself is not put down to others', () => {
  const watch = new OthersWatch();
  const end = performance.now() + 200;
  while (performance.now() < end);
  const share = watch.share();
  expect(share).toBeGreaterThanOrEqual(0);
  expect(share).toBeLessThanOrEqual(1);
});
