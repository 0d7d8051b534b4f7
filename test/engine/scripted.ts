/**
 * Runs jobs without devices: members are byte arrays, and a script says which transfers fail. Every batch is checked as
 * it passes: addresses stay inside the request and the scratch memory, and the number of batches is bounded.
 */
import { addressIn, type Failure, type Request } from '../../lib/engine/batch.ts';
import { createMemory, scratchAddress } from '../../lib/engine/memory.ts';
import { COMMIT_SLOTS, type Job, tableAddress } from '../../lib/engine/ring.ts';
import { drive, type Noticeboard, type Report, Runner, SharedHealth } from '../../lib/engine/run.ts';
import { RaidError } from '../../lib/errors.ts';
import type { Layout } from '../../lib/layout/layout.ts';
import { selectKernels } from '../../lib/parity/select.ts';
import type { Health, Transfer } from '../../lib/plan/plan.ts';
import { MIB } from '../../lib/units.ts';

const map = createMemory(0, MIB);
const bytes = new Uint8Array(map.memory.buffer);
const kernels = selectKernels(map.memory, tableAddress(0), 'fastest');

/** What goes wrong with a transfer, or null. It may remember what it has done. */
export type Script = (direction: 'read' | 'write', transfer: Transfer) => RaidError | null;

export interface ScriptedOptions {
  readonly layout: Layout;
  readonly images: readonly Uint8Array[];
  readonly health: Health;
  readonly script?: Script;
  readonly scratchBytes?: number;
  readonly batchesMax?: number;
  readonly readOnly?: boolean;
  /** What other threads say of members. */
  readonly board?: Noticeboard;
  /** A write that fails leaves something of its own, and not what was there. */
  readonly tears?: boolean;
}

export class Scripted {
  readonly images: Uint8Array[];
  readonly health: SharedHealth;
  readonly runner: Runner;
  batches = 0;
  /** Writes that were done without steps: `Runner.writeNow`. */
  writtenNow = 0;
  readonly #options: ScriptedOptions;

  constructor(options: ScriptedOptions) {
    this.#options = options;
    this.images = options.images.map((image) => image.slice());
    this.health = new SharedHealth(options.layout, options.health, options.board);
    this.runner = new Runner({
      layout: options.layout,
      kernels,
      scratchAddress: scratchAddress(0),
      scratchBytes: options.scratchBytes ?? MIB,
      health: this.health,
      readOnly: options.readOnly ?? false,
    });
  }

  get missing(): number[] {
    return this.health.compiled.health.members.flatMap(({ state }, slot) =>
      state === 'missing' ? [slot] : [],
    );
  }

  /** `isNow`: as drivers do whose I/O blocks, without steps where that can be. */
  run(
    job: Omit<Job, 'address'>,
    request?: Uint8Array,
    isNow = false,
  ): { report: Report; answer: Uint8Array } {
    const onArray = job.op === 'read' || job.op === 'write';
    const address = onArray ? map.heapAddress : 0;
    // Poison, so that what nobody filled shows; by a kernel, since JavaScript fills shared memory byte by byte.
    kernels.fill(scratchAddress(0), 0xa5, this.#options.scratchBytes ?? MIB);
    if (onArray) kernels.fill(address, 0x5a, job.lengthBytes);
    if (request !== undefined) bytes.set(request, address);
    const perform = (batch: Request): readonly Failure[] | null => this.#perform(batch);
    const now = isNow ? this.runner.writeNow({ ...job, address }, perform) : null;
    if (now !== null) this.writtenNow += 1;
    const report = now ?? drive(this.runner.run({ ...job, address }), perform);
    const answer = bytes.slice(address, address + job.lengthBytes);
    return { report, answer };
  }

  #perform(batch: Request): readonly Failure[] | null {
    this.batches += 1;
    if (batch.direction !== 'read' && batch.direction !== 'write') throw new Error('there is no log here');
    if (this.batches > (this.#options.batchesMax ?? 400)) throw new Error('the job goes on for ever');
    if (batch.direction === 'write' && batch.transfers.length > COMMIT_SLOTS)
      throw new Error(`${batch.transfers.length} places in one commit`);
    const scratchBytes = this.#options.scratchBytes ?? MIB;
    const failures: Failure[] = [];
    for (const transfer of batch.transfers) {
      const { member, offsetBytes, lengthBytes } = transfer;
      const end = transfer.address + lengthBytes;
      const inRequest = end <= batch.requestBytes;
      const inScratch = transfer.address >= batch.requestBytes && end <= batch.requestBytes + scratchBytes;
      if (lengthBytes <= 0 || (!inRequest && !inScratch))
        throw new Error(
          `address ${transfer.address}+${lengthBytes} of ${batch.requestBytes}+${scratchBytes}`,
        );
      const image = this.images[member];
      if (image === undefined || offsetBytes < 0 || offsetBytes + lengthBytes > image.byteLength)
        throw new Error(`member ${member} has no ${offsetBytes}+${lengthBytes}`);
      const at = addressIn(batch, transfer.address);
      const error = this.#options.script?.(batch.direction, transfer) ?? null;
      if (error !== null) {
        // A read that fails leaves garbage, a write that fails leaves what was there.
        if (batch.direction === 'read') bytes.fill(0xee, at, at + lengthBytes);
        else if (this.#options.tears === true)
          image.fill(0xf0 + member, offsetBytes, offsetBytes + lengthBytes);
        failures.push({ transfer, error });
      } else if (batch.direction === 'read') {
        bytes.set(image.subarray(offsetBytes, offsetBytes + lengthBytes), at);
      } else {
        image.set(bytes.subarray(at, at + lengthBytes), offsetBytes);
      }
    }
    return failures.length === 0 ? null : failures;
  }
}

export function failure(code: 'MEDIUM_ERROR' | 'MEMBER_GONE' | 'WRITE_FAILED' | 'SHORT_READ'): RaidError {
  return new RaidError(code, `scripted ${code}`, { injected: true });
}

export function overlaps(
  transfer: { readonly offsetBytes: number; readonly lengthBytes: number },
  range: { readonly offsetBytes: number; readonly lengthBytes: number },
): boolean {
  return (
    transfer.offsetBytes < range.offsetBytes + range.lengthBytes &&
    range.offsetBytes < transfer.offsetBytes + transfer.lengthBytes
  );
}
