/**
 * Goal: the plans that are proved on names, and the kernels that are proved on bytes, mean the same by a step.
 * Method: a history of writes and recoveries on members in memory, degraded differently at every step, read back.
 */
import { expect, test } from 'vitest';
import type { ParityLayout } from '../../lib/layout/layout.ts';
import { type Kernels, workAreaBytes } from '../../lib/parity/kernels.ts';
import { type KernelName, selectKernels, supportedKernels } from '../../lib/parity/select.ts';
import { compileHealth } from '../../lib/plan/health.ts';
import { type Compute, type Health, isLost, type Lost, type Plan } from '../../lib/plan/plan.ts';
import { planCheck, planRead, planRecover, planRepair, planWrite } from '../../lib/plan/planner.ts';
import { CHUNK, everyInterval, everyMask, HALF, parityLayout } from './shapes.ts';

const BASE = workAreaBytes + (4096 - (workAreaBytes % 4096));

class Machine {
  readonly layout: ParityLayout;
  readonly members: readonly Uint8Array[];
  readonly kernels: Kernels;
  readonly memory: Uint8Array;
  differences = 0;

  constructor(layout: ParityLayout, kernel: KernelName) {
    const memory = new WebAssembly.Memory({ initial: 16, maximum: 16, shared: true });
    this.layout = layout;
    this.members = layout.memberBytes.map((bytes) => new Uint8Array(bytes));
    this.kernels = selectKernels(memory, 0, kernel);
    this.memory = new Uint8Array(memory.buffer);
  }

  run(answer: Plan | Lost, request: Uint8Array): void {
    if (isLost(answer)) throw new Error(`refused: ${JSON.stringify(answer.lost)}`);
    const { reads, compute, inspect, writes } = answer;
    this.memory.fill(0xee, BASE, BASE + answer.requestBytes + answer.scratchBytes);
    this.memory.set(request, BASE);
    for (const { member, offsetBytes, lengthBytes, address } of reads) {
      this.memory.set(this.members[member]!.subarray(offsetBytes, offsetBytes + lengthBytes), BASE + address);
    }
    for (const step of compute) this.#compute(step);
    for (const step of inspect) {
      if (step.op !== 'verify') throw new Error('parity is verified');
      const data = step.data.map(at);
      if (this.kernels.verify(data, BASE + step.p, at(step.q), step.lengthBytes) >= 0) this.differences += 1;
    }
    for (const { member, offsetBytes, lengthBytes, address } of writes) {
      this.members[member]!.set(
        this.memory.subarray(BASE + address, BASE + address + lengthBytes),
        offsetBytes,
      );
    }
    request.set(this.memory.subarray(BASE, BASE + request.length));
  }

  #compute(step: Compute): void {
    const { kernels } = this;
    if (step.op === 'syndrome') kernels.syndrome(step.data.map(at), at(step.p), at(step.q), step.lengthBytes);
    else if (step.op === 'recover')
      kernels.recover(step.data.map(at), at(step.p), at(step.q), step.erasure, step.lengthBytes);
    else if (step.op === 'update')
      kernels.update(
        BASE + step.oldData,
        BASE + step.newData,
        step.index,
        at(step.p),
        at(step.q),
        step.lengthBytes,
      );
    else throw new Error(`no plan has a ${step.op}`);
  }
}

function at(address: number | null): number | null {
  return address === null ? null : BASE + address;
}

test.each(supportedKernels())('%s: what is written through any loss is read through any other', (kernel) => {
  let turn = 1;
  const next = (below: number): number => {
    turn = (Math.imul(turn, 1_103_515_245) + 12_345) & 0x7fff_ffff;
    return (turn >> 8) % below;
  };
  for (const layout of [
    parityLayout('raid5', 'left-symmetric', 4, 3),
    parityLayout('raid6', 'left-asymmetric', 7, 2),
    parityLayout('raid6', 'ddf-N-continue', 5, 3),
  ]) {
    const machine = new Machine(layout, kernel);
    const array = new Uint8Array(layout.arrayBytes);
    const survivable = [...everyMask(layout.memberCount, layout.parityCount)];
    for (let step = 0; step < 20; step += 1) {
      const health = survivable[next(survivable.length)]!;
      const compiled = compileHealth(layout, health);
      for (let writes = 0; writes < 3; writes += 1) {
        const offset = next(layout.arrayBytes / HALF) * HALF;
        const data = Uint8Array.from({ length: (1 + next((layout.arrayBytes - offset) / HALF)) * HALF }, () =>
          next(256),
        );
        array.set(data, offset);
        machine.run(planWrite(layout, compiled, offset, data.length), data);
      }
      const seen = new Uint8Array(layout.arrayBytes);
      machine.run(planRead(layout, compiled, 0, seen.length), seen);
      if (Buffer.compare(seen, array) !== 0) expect.fail(JSON.stringify(health));
      restore(machine, health);
      const whole = compileHealth(layout, {
        members: health.members.map(() => ({ state: 'in_sync' })),
        erased: [],
      });
      machine.run(planCheck(layout, whole, 0, layout.rowCount * CHUNK), new Uint8Array());
      expect(machine.differences).toBe(0);
    }
    for (const member of machine.members) member.fill(0x5a, 0, HALF);
    const whole = compileHealth(layout, {
      members: machine.members.map(() => ({ state: 'in_sync' })),
      erased: [],
    });
    machine.run(planRepair(layout, whole, 0, HALF), new Uint8Array());
    machine.run(planCheck(layout, whole, 0, HALF), new Uint8Array());
    expect(machine.differences).toBe(0);
  }
});

/**
 * After a crash the parities of a raid6 may not agree. A write relies on them for what is missing, and must not leave what it
 * writes to that: whoever goes next, it is read as it was written.
 */
test('where a resync has still to pass, what is written through one loss is read through two', () => {
  const kernel = supportedKernels()[0]!;
  for (const layout of [
    parityLayout('raid6', 'left-symmetric', 4, 1),
    parityLayout('raid6', 'ddf-N-continue', 6, 1),
    parityLayout('raid6', 'left-asymmetric', 7, 1),
  ]) {
    const machine = new Machine(layout, kernel);
    const healthWithout = (...missing: readonly number[]) =>
      compileHealth(layout, {
        members: machine.members.map((_, member) => ({
          state: missing.includes(member) ? 'missing' : 'in_sync',
        })),
        erased: [],
        unsyncedFromBytes: 0,
      });
    for (const [from, to] of everyInterval(layout.arrayBytes / HALF)) {
      for (const [first] of machine.members.entries()) {
        for (const [member, bytes] of machine.members.entries())
          bytes.forEach((_, index) => {
            bytes[index] = Math.imul(index + 1, 31 + 2 * member) >> 3;
          });
        const data = Uint8Array.from({ length: (to - from) * HALF }, (_, index) => index * 7);
        machine.run(planWrite(layout, healthWithout(first), from * HALF, data.length), data.slice());
        for (const [second] of machine.members.entries()) {
          const seen = new Uint8Array(data.length);
          machine.run(planRead(layout, healthWithout(first, second), from * HALF, seen.length), seen);
          if (Buffer.compare(seen, data) !== 0)
            expect.fail(`${layout.memberCount} members, ${from}..${to} without ${first}, then ${second}`);
        }
      }
    }
  }
});

/** Rebuilds member after member, each from all that are whole by then. */
function restore(machine: Machine, health: Health): void {
  const members = [...health.members];
  health.members.forEach((before, member) => {
    if (before.state === 'in_sync') return;
    if (before.state === 'missing') machine.members[member]!.fill(0xcc);
    members[member] = {
      state: 'recovering',
      recoveredBytes: before.state === 'recovering' ? before.recoveredBytes : 0,
    };
    const compiled = compileHealth(machine.layout, { members, erased: [] });
    const bytes = machine.layout.memberBytes[member]!;
    machine.run(planRecover(machine.layout, compiled, member, 0, bytes), new Uint8Array());
    members[member] = { state: 'in_sync' };
  });
}
