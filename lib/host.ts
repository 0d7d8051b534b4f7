/**
 * The one door through which the world comes in: time and chance. Whatever decides something by a clock or a
 * random number takes a `Host`; the simulator passes one of its own, and then one seed is one history.
 */
export interface Host {
  /** Monotonic milliseconds, with fractions. Never the wall clock: that one jumps. */
  now(): number;
  /** Wall-clock milliseconds since 1970, only ever for timestamps that people read. */
  wallClock(): number;
  /** Once the signal is aborted it ends at once; a host that does not know the signal may sleep on. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Calls back when timers and sockets have had their turn. */
  turn(run: () => void): void;
  /** A whole number in [0, below). */
  random(below: number): number;
  randomBytes(count: number): Uint8Array;
}

export const realHost: Host = {
  now: () => performance.now(),
  wallClock: () => Date.now(),
  sleep: (ms, signal) =>
    new Promise((resolve) => {
      if (signal?.aborted === true) {
        resolve();
        return;
      }
      const wake = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      signal?.addEventListener('abort', wake);
    }),
  turn: (run) => {
    setImmediate(run);
  },
  random: (below) => Math.floor(Math.random() * below),
  randomBytes: (count) => crypto.getRandomValues(new Uint8Array(count)),
};

/**
 * A repeatable source of chance (xorshift128+ on 32-bit halves would be overkill: this is mulberry32, whose
 * 2^32 period is far beyond one test and whose state prints as one number).
 */
export function seededRandom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}
