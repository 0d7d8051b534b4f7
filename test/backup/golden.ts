/** What the golden repositories hold: worked out here, byte for byte, and not with anything that could change. */

export const PASSPHRASE = 'golden, пароль';

export const goldenKinds = {
  deflate: { options: { redundancy: 2 }, codec: 1 },
  zstd: { options: { redundancy: 1 }, codec: 2 },
  encrypted: { options: { passphrase: PASSPHRASE, packBytes: 100_000 }, codec: 1 },
} as const;

/** Text, zeros, and bytes that do not shrink. */
export function goldenImages(): readonly (readonly [string, Uint8Array])[] {
  const first = new Uint8Array(9500);
  for (let at = 0; at < 3000; at += 1) first[at] = 'the quick brown fox '.charCodeAt(at % 20);
  for (let at = 6000, state = 1; at < 9500; at += 1) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    first[at] = state >>> 24;
  }
  const second = first.slice(0, 9000);
  second.fill(0x5a, 2000, 5000);
  return [
    ['first', first],
    ['second', second],
  ];
}
