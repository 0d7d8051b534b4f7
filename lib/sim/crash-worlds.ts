/**
 * The arrays whose crashes are explored, and what happens to them: everything small, since small worlds hold the bugs
 * and can be walked through entirely.
 *
 * A script is data, so that a failure can name it and a replay can find it. Sectors of 512 bytes, chunks of 4 KiB.
 */
import type { FormOptions } from '../array/form.ts';
import type { Layout } from '../layout/layout.ts';
import { KIB, SECTOR_BYTES } from '../units.ts';

export interface World {
  readonly title: string;
  readonly members: number;
  readonly spares: number;
  /** Disks that are there, and do not belong to the array. */
  readonly loose: number;
  /** Of each member. */
  readonly dataBytes: number;
  /**
   * Of each member, that a sync does in one step: less than there is, so that the next one is begun ahead; but all of it where the
   * moments in between would be too many.
   */
  readonly windowBytes: number;
  readonly shape: Pick<
    FormOptions,
    'level' | 'layout' | 'chunk' | 'metadata' | 'bitmap' | 'bitmapChunk' | 'consistencyPolicy'
  >;
}

export type Step =
  | readonly ['write', sector: number, count: number]
  | readonly ['fua', sector: number, count: number]
  | readonly ['zero', sector: number, count: number]
  | readonly ['flush']
  /** Long enough to become clean. */
  | readonly ['idle']
  | readonly ['close']
  /** All of them under way at once. */
  | readonly ['together', steps: readonly Step[]]
  | readonly ['fail', disk: number]
  /** Fails, and leaves. */
  | readonly ['remove', disk: number]
  | readonly ['re-add', disk: number]
  | readonly ['add', disk: number]
  | readonly ['replace', disk: number]
  /** The next write to its data fails. */
  | readonly ['refuse-data', disk: number]
  /** The disk takes no writes from now on. */
  | readonly ['refuse-writes', disk: number]
  /** Its next flush fails. */
  | readonly ['refuse-flush', disk: number]
  /** A sector of its data cannot be read until it is written. */
  | readonly ['bad-sector', disk: number, sector: number]
  /** Watches the sync until nothing is left to do. */
  | readonly ['rebuild']
  | readonly ['repair'];

export type Script = readonly Step[];

const small = 16 * KIB;
/** The least that has room for a bitmap. */
const medium = 64 * KIB;
const bitmap = { bitmap: 'internal', bitmapChunk: '4K' } as const;

function world(
  title: string,
  members: number,
  dataBytes: number,
  shape: World['shape'],
  others: Partial<Pick<World, 'spares' | 'loose' | 'windowBytes'>> = {},
): World {
  const chunk = shape.level === 1 ? {} : { chunk: '4K' };
  const windowBytes = dataBytes / 2;
  return {
    title,
    members,
    dataBytes,
    windowBytes,
    spares: 0,
    loose: 1,
    ...others,
    shape: { ...chunk, ...shape },
  };
}

const inOneStep = (dataBytes: number) => ({ windowBytes: dataBytes });

export const worlds: readonly World[] = [
  world('raid1 of 2', 2, medium, { level: 1 }, { windowBytes: 16 * KIB }),
  world('raid1 of 2, bitmap', 2, medium, { level: 1, ...bitmap }),
  world('raid1 of 3, bitmap, 1.0', 3, medium, { level: 1, ...bitmap, metadata: '1.0' }, inOneStep(medium)),
  world('raid1 of 2, spare', 2, medium, { level: 1 }, { spares: 1, loose: 0 }),
  world('raid4 of 3', 3, small, { level: 4 }),
  world('raid5 of 3', 3, small, { level: 5 }),
  world('raid5 of 3, bitmap', 3, medium, { level: 5, ...bitmap }, { windowBytes: 16 * KIB }),
  world('raid5 of 5, right-asymmetric, 1.1', 5, small, {
    level: 5,
    layout: 'right-asymmetric',
    metadata: '1.1',
  }),
  world('raid5 of 4, spare, bitmap', 4, medium, { level: 5, ...bitmap }, { spares: 1, loose: 0 }),
  world('raid5 of 3, ppl', 3, small, { level: 5, consistencyPolicy: 'ppl' }),
  world('raid5 of 5, ppl, left-asymmetric, 1.0', 5, small, {
    level: 5,
    layout: 'left-asymmetric',
    metadata: '1.0',
    consistencyPolicy: 'ppl',
  }),
  world('raid6 of 4', 4, small, { level: 6 }, inOneStep(small)),
  world('raid6 of 4, bitmap', 4, medium, { level: 6, ...bitmap }, inOneStep(medium)),
  world('raid6 of 5, ddf-N-continue', 5, small, { level: 6, layout: 'ddf-N-continue' }, inOneStep(small)),
  world('raid10 of 4, n2', 4, small, { level: 10, layout: 'n2' }),
  world('raid10 of 4, n2, bitmap', 4, medium, { level: 10, layout: 'n2', ...bitmap }, inOneStep(medium)),
  world('raid10 of 3, f2', 3, small, { level: 10, layout: 'f2' }, inOneStep(small)),
  world('raid10 of 5, o2', 5, small, { level: 10, layout: 'o2' }, inOneStep(small)),
  world('raid0 of 2', 2, small, { level: 0 }, { loose: 0 }),
  world('linear of 2', 2, small, { level: 'linear' }, { loose: 0 }),
];

/** What is done to an array of this shape, each from the same clean start. */
export function scriptsFor(of: World, layout: Layout): readonly Script[] {
  const end = layout.arrayBytes / SECTOR_BYTES;
  const chunk = 8;
  const row =
    layout.kind === 'parity' ? chunk * layout.dataCount : Math.min(end, chunk * Math.max(1, of.members - 1));
  const one: Step = ['write', 0, 1];
  const inside: Step = ['write', 3, 2];
  const across: Step = ['write', chunk - 1, 2];
  const whole: Step = ['write', 0, row];
  const tail: Step = ['write', end - 3, 3];
  const far: Step = ['write', Math.floor(end / 2), 2];
  const scripts: Script[] = [
    [one, ['idle'], ['write', 0, 1], ['close']],
    [inside, ['flush'], inside],
    [across, across, ['flush']],
    [whole, ['idle'], ['write', 1, 1]],
    [['fua', 1, 1], one, ['fua', 0, 2]],
    [['zero', 2, 4], ['flush'], ['idle']],
    [['together', [one, ['write', 1, 1], far]], ['flush'], ['together', [one, tail]]],
    [['together', [across, ['flush'], one]], ['close']],
    [tail, ['idle'], far, ['idle']],
  ];
  // In rows of their own, all under way at once: what survives of one says nothing of what survives of another.
  const wide = [0, 1, 2, 3]
    .map((index): Step => ['write', index * row + 2 * index, 3])
    .filter(([, sector]) => (sector as number) + 3 <= end);
  const several: Script = [one, ['together', wide], ['flush'], one];
  if (layout.kind === 'copies' && layout.copyCount === 1) return [...scripts, several];
  const disk = of.members - 1;
  const fresh = of.members;
  const hasBitmap = of.shape.bitmap === 'internal';
  scripts.push(
    [one, ['fail', 0], ['write', 0, 2], ['flush']],
    [['fail', disk], one, ['idle'], across, ['close']],
    [['refuse-writes', disk], across, ['flush'], far],
    [one, ['refuse-flush', 0], inside, ['flush'], one],
    [['bad-sector', 0, 1], one, ['write', chunk, 1], ['repair']],
    [one, ['together', [['fail', disk], across, ['fua', 0, 1]]]],
  );
  if (of.loose > 0) {
    scripts.push(
      [['fail', disk], one, ['add', fresh], ['rebuild'], one, ['flush']],
      [['fail', disk], ['add', fresh], ['together', [['rebuild'], inside, far]], ['close']],
      [['add', fresh], ['replace', 0], ['together', [['rebuild'], one]], across, ['flush']],
      [['add', fresh], ['replace', 0], one, ['fail', 0], across, ['rebuild'], ['flush']],
    );
  }
  if (of.spares > 0) scripts.push([one, ['fail', 0], across, ['rebuild'], one, ['flush']]);
  if (hasBitmap && of.spares === 0) {
    scripts.push(
      [one, ['remove', disk], across, ['flush'], ['re-add', disk], ['rebuild'], far, ['flush']],
      [['remove', 0], far, ['re-add', 0], ['together', [['rebuild'], one]], ['idle']],
    );
  }
  scripts.push(
    [one, ['refuse-data', 0], ['write', 0, 2], ['flush'], far],
    [tail, ['flush'], ['together', [one, far]]],
  );
  if (hasBitmap && of.spares === 0)
    scripts.push([['remove', disk], far, ['idle'], ['re-add', disk], ['rebuild'], ['flush']]);
  scripts.push(several, [['fail', disk], ['together', wide], ['flush'], one]);
  return scripts;
}

/** What follows on a crash, before the next one. */
export function scriptsAfterCrash(layout: Layout): readonly Script[] {
  const end = layout.arrayBytes / SECTOR_BYTES;
  return [
    [['rebuild'], ['close']],
    [['write', 1, 2], ['idle'], ['write', Math.min(8, end - 1), 1]],
    [['together', [['rebuild'], ['write', 0, 1]]], ['flush']],
  ];
}

/** So many members, whichever they are, may be missing. */
export function toleratedBy({ shape, members }: World, layout: Layout): number {
  if (shape.level === 1) return members - 1;
  if (layout.kind === 'parity') return layout.parityCount;
  return layout.copyCount - 1;
}

export function describe(script: Script): string {
  return script
    .map((step) => (step[0] === 'together' ? `(${describe(step[1])})` : step.join(' ')))
    .join('; ');
}
