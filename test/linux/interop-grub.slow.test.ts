/**
 * A third reader: GRUB has an implementation of md of its own, and `grub-fstest` runs it over plain files. It recomputes
 * what is missing from parity that we wrote, knowing nothing of how either Linux or we do it.
 */
import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { fillWith, form, Lab, Model, type OurShape } from './interop.ts';

function isInstalled(): boolean {
  try {
    execFileSync('grub-fstest', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    if (process.env['CI'] === 'true') throw new Error('grub-fstest is not here: apt-get install grub-common');
    console.warn('SKIPPED, GRUB as a third reader: grub-fstest not found: apt-get install grub-common');
    return false;
  }
}

const cases: readonly [title: string, members: number, gone: readonly number[], shape: OurShape][] = [
  ['raid0 of three', 3, [], { level: '0', chunk: '16K' }],
  ['raid1, the first of two missing', 2, [0], { level: '1' }],
  ['raid4, a data member missing', 3, [0], { level: '4', chunk: '16K' }],
  ['raid5 left-symmetric, one missing', 4, [1], { level: '5', chunk: '64K' }],
  ['raid5 left-asymmetric, one missing', 5, [4], { level: '5', chunk: '4K', layout: 'left-asymmetric' }],
  ['raid5 right-symmetric, one missing', 3, [0], { level: '5', chunk: '32K', layout: 'right-symmetric' }],
  ['raid5 right-asymmetric, one missing', 3, [2], { level: '5', chunk: '16K', layout: 'right-asymmetric' }],
  ['raid6, two missing', 5, [1, 3], { level: '6', chunk: '16K' }],
  ['raid6, two neighbours missing', 6, [0, 1], { level: '6', chunk: '64K' }],
  ['raid10 near=2, one missing', 4, [0], { level: '10', chunk: '64K', layout: 'n2' }],
  ['raid10 far=2 on three, one missing', 3, [1], { level: '10', chunk: '16K', layout: 'f2' }],
  ['raid10 offset=2 on five, one missing', 5, [2], { level: '10', chunk: '16K', layout: 'o2' }],
];

describe.runIf(isInstalled())('GRUB reads what raidsim wrote', () => {
  let lab: Lab | null = null;
  beforeAll(() => {
    lab = new Lab('grub');
  });
  afterAll(() => lab?.remove());

  test.each(cases)('%s', async (_, members, gone, shape) => {
    if (lab === null) throw new Error('there is a lab');
    const images = lab.images(Array.from({ length: members }, () => 6));
    const array = await form(images, { assumeClean: true, ...shape });
    const model = new Model(lab.pool, 0, array.limits.sizeBytes);
    await fillWith(array, model.bytes);
    for (const slot of gone) await array.fail(slot);
    const uuid = array.metadata?.array.setUuid.replaceAll(':', '') ?? '';
    await array.close();
    // Failed members are not even shown to it.
    const here = images.filter((_, index) => !gone.includes(index));
    const blocks = `(mduuid/${uuid})0+${model.bytes.byteLength / 512}`;
    const read = execFileSync('grub-fstest', ['-c', String(here.length), ...here, 'cat', blocks], {
      maxBuffer: 2 * model.bytes.byteLength,
    });
    expect(read.equals(model.bytes)).toBe(true);
  });

  test('with one member more missing than redundancy allows, it finds no array: it did use the parity', async () => {
    if (lab === null) throw new Error('there is a lab');
    const images = lab.images([6, 6, 6]);
    const array = await form(images, { assumeClean: true, level: '5', chunk: '16K' });
    const uuid = array.metadata?.array.setUuid.replaceAll(':', '') ?? '';
    await array.close();
    const here = images.slice(0, 1);
    expect(() =>
      execFileSync('grub-fstest', ['-c', '1', ...here, 'cat', `(mduuid/${uuid})0+8`], { stdio: 'pipe' }),
    ).toThrow(/not found/);
  });
});
