/**
 * How far something is, how fast, and how long it will take: measured over the last seconds, and as vague as the
 * measurements are. And how it ends early: on Ctrl-C.
 */
import { formatSize } from '../lib/index.ts';
import { duration, percent, progressLine } from './render.ts';

/** What is seen of the speed: over this long, in pieces of this length. */
const WINDOW_MS = 10_000;
const PIECE_MS = 500;
/** Before so many pieces nothing is said about the end. */
const PIECES_MIN = 3;
/** Estimates this close together are told as one. */
const SURE = 1.25;

const REDRAW_MS = 100;
/** Where nothing can be drawn over: a line at every tenth, and not oftener than this. */
const LINE_MS = 1000;

interface Sample {
  readonly ms: number;
  readonly bytes: number;
}

export class Pace {
  #samples: Sample[] = [];

  /** Bytes done so far, now. Going back means that something else has begun. */
  note(bytes: number, ms: number): void {
    const last = this.#samples.at(-1);
    if (last !== undefined && bytes < last.bytes) this.#samples = [];
    if (last !== undefined && ms - last.ms < PIECE_MS / 4) return;
    this.#samples.push({ ms, bytes });
    while ((this.#samples[1]?.ms ?? ms) < ms - WINDOW_MS) this.#samples.shift();
  }

  /** Null until something has been seen to move. */
  get bytesPerSecond(): number | null {
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    if (first === undefined || last === undefined || last.ms - first.ms < PIECE_MS / 2) return null;
    return ((last.bytes - first.bytes) / (last.ms - first.ms)) * 1000;
  }

  /** What the slower and the faster pieces of the last seconds say of the rest; null when there are too few of them. */
  etaSeconds(restBytes: number): { readonly low: number; readonly high: number } | null {
    const speeds = this.#pieces();
    if (speeds.length < PIECES_MIN) return null;
    const sorted = speeds.toSorted((left, right) => left - right);
    // Single slips are left out: one piece in six at either end.
    const cut = Math.floor(sorted.length / 6);
    const slow = sorted[cut] ?? 0;
    const fast = sorted[sorted.length - 1 - cut] ?? 0;
    if (slow <= 0) return null;
    return { low: restBytes / fast, high: restBytes / slow };
  }

  /** `412 MiB/s`, and `15 s left`, `2m05s to 3m10s left`, or nothing. */
  words(restBytes: number): readonly string[] {
    const speed = this.bytesPerSecond;
    if (speed === null || speed <= 0) return [];
    const eta = this.etaSeconds(restBytes);
    const rate = `${formatSize(Math.round(speed))}/s`;
    if (eta === null) return [rate];
    const [low, high] = [duration(eta.low), duration(eta.high)];
    const isSure = eta.high <= eta.low * SURE || low === high || eta.high < 2;
    return [rate, isSure ? `${duration((eta.low + eta.high) / 2)} left` : `${low} to ${high} left`];
  }

  #pieces(): readonly number[] {
    const speeds: number[] = [];
    let from = this.#samples[0];
    for (const sample of this.#samples) {
      if (from === undefined || sample.ms - from.ms < PIECE_MS) continue;
      speeds.push(((sample.bytes - from.bytes) / (sample.ms - from.ms)) * 1000);
      from = sample;
    }
    return speeds;
  }
}

export interface ShowHow {
  readonly json: boolean;
  readonly quiet: boolean;
}

export interface Step {
  readonly action: string;
  readonly doneBytes: number;
  /** Null where nobody knows: a pipe. */
  readonly totalBytes: number | null;
}

/** One line on a terminal; a line now and then elsewhere; JSON lines, or nothing, where that was asked for. */
export class Progress {
  readonly #how: ShowHow;
  readonly #pace = new Pace();
  readonly #startMs = performance.now();
  #action = '';
  #drawnMs = 0;
  #tenth = 0;
  #isDrawn = false;

  constructor(how: ShowHow) {
    this.#how = how;
  }

  get seconds(): number {
    return (performance.now() - this.#startMs) / 1000;
  }

  /** `extra` goes into the JSON line; `note` to people. */
  show(step: Step, extra: Readonly<Record<string, unknown>> = {}, note = ''): void {
    const ms = performance.now();
    if (step.action !== this.#action) {
      this.#action = step.action;
      this.#tenth = 0;
    }
    this.#pace.note(step.doneBytes, ms);
    if (this.#how.quiet && !this.#how.json) return;
    if (this.#how.json) this.#writeJson(step, extra, ms);
    else if (process.stderr.isTTY) this.#draw(step, note, ms);
    else this.#writeLine(step, note, ms);
  }

  /** Wipes the line, for something that is printed to stay. */
  clear(): void {
    if (this.#isDrawn) progressLine(null, '');
    this.#isDrawn = false;
  }

  #writeJson(step: Step, extra: Readonly<Record<string, unknown>>, ms: number): void {
    if (ms - this.#drawnMs < REDRAW_MS && step.doneBytes !== step.totalBytes) return;
    this.#drawnMs = ms;
    const eta = step.totalBytes === null ? null : this.#pace.etaSeconds(step.totalBytes - step.doneBytes);
    const speed = this.#pace.bytesPerSecond;
    printJsonLine({
      type: 'progress',
      ...step,
      bytesPerSecond: speed === null ? null : Math.round(speed),
      etaSeconds: eta === null ? null : Math.round(((eta.low + eta.high) / 2) * 10) / 10,
      ...extra,
    });
  }

  #draw(step: Step, note: string, ms: number): void {
    if (ms - this.#drawnMs < REDRAW_MS && this.#isDrawn) return;
    this.#drawnMs = ms;
    this.#isDrawn = true;
    const words = this.#words(step, note);
    if (step.totalBytes === null) progressLine(0, words);
    else progressLine(fractionOf(step), words);
  }

  #writeLine(step: Step, note: string, ms: number): void {
    const tenth = step.totalBytes === null ? this.#tenth + 1 : Math.floor(fractionOf(step) * 10);
    if (tenth <= this.#tenth || ms - this.#drawnMs < LINE_MS) return;
    this.#tenth = tenth;
    this.#drawnMs = ms;
    process.stderr.write(`${this.#words(step, note)}\n`);
  }

  #words(step: Step, note: string): string {
    const parts =
      step.totalBytes === null
        ? [step.action, formatSize(step.doneBytes), ...this.#pace.words(Number.NaN).slice(0, 1)]
        : [
            `${step.action} ${percent(fractionOf(step))}`,
            `${formatSize(step.doneBytes)} of ${formatSize(step.totalBytes)}`,
            ...this.#pace.words(step.totalBytes - step.doneBytes),
          ];
    return [...parts, ...(note === '' ? [] : [note])].join('  ');
  }
}

function fractionOf(step: Step): number {
  return step.totalBytes === null || step.totalBytes === 0 ? 1 : step.doneBytes / step.totalBytes;
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

export function printJsonLine(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

export const INTERRUPTED = 130;

/** While it exists, the first Ctrl-C only asks to stop; the second does not wait. */
export class Interrupt implements Disposable {
  readonly #controller = new AbortController();
  readonly #handler = (): void => this.#interrupted();

  constructor() {
    for (const name of signals) process.on(name, this.#handler);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get isAsked(): boolean {
    return this.#controller.signal.aborted;
  }

  [Symbol.dispose](): void {
    for (const name of signals) process.off(name, this.#handler);
  }

  #interrupted(): void {
    if (this.isAsked) process.exit(INTERRUPTED);
    this.#controller.abort();
  }
}

const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Steps until they end or somebody interrupts: then without waiting for the step that is under way. */
export async function* untilAsked<T>(
  steps: AsyncGenerator<T>,
  signal: AbortSignal,
): AsyncGenerator<T, void, undefined> {
  const asked = new Promise<null>((resolve) => {
    if (signal.aborted) resolve(null);
    signal.addEventListener('abort', () => resolve(null), { once: true });
  });
  for (;;) {
    const next = steps.next();
    // Nobody may be left to hear of it when the step under way fails after the interruption.
    next.catch(() => undefined);
    const step = await Promise.race([next, asked]);
    if (step === null || step.done === true) return;
    yield step.value;
  }
}
