/** Redundancy over packs: the arithmetic, and small groups; parity.slow.test.ts has the others. */
import { describe, expect, test } from 'vitest';
import { type GroupMember, GroupParity, memberOf, recoverPacks } from '../../lib/backup/parity.ts';
import { Repository } from '../../lib/backup/repository.ts';
import { loadSum } from '../../lib/backup/seal.ts';
import { seededRandom } from '../../lib/host.ts';
import { randomBytes, runSeed, withSeed } from '../conformance/seed.ts';
import { flipHeaders, loseAll, loseTooMany, subsets } from './parity-world.ts';
import { deviceOf, expectSame, MemoryStore, newRepository, restored } from './world.ts';

const sum = await loadSum();

test('the arithmetic: every one and two packs of groups of 1 to 8, of unequal lengths, come back', () =>
  withSeed(runSeed, (random) => {
    for (let count = 1; count <= 8; count += 1) {
      const packs = Array.from({ length: count }, () =>
        randomBytes(random, 1 + random(count === 3 ? 150_000 : 3000)),
      );
      const members: GroupMember[] = packs.map((bytes, index) => memberOf(String(index), bytes, sum));
      const group = new GroupParity(['p', 'q']);
      for (const [index, bytes] of packs.entries()) group.add(members[index]!, bytes);
      const [p, q] = group.files('g').map(({ parity }) => parity) as [Uint8Array, Uint8Array];
      const attempt = (lost: readonly number[], parity: { p: Uint8Array | null; q: Uint8Array | null }) => {
        const left = packs.map((bytes, index) => (lost.includes(index) ? null : bytes));
        return recoverPacks({ members, packs: left, ...parity });
      };
      for (const lost of [...subsets(count, 1), ...subsets(count, 2)]) {
        const choices =
          lost.length === 2
            ? [{ p, q }]
            : [
                { p, q },
                { p, q: null },
                { p: null, q },
              ];
        for (const parity of choices) {
          const found = attempt(lost, parity);
          for (const index of lost)
            expectSame(found!.get(index)!, packs[index]!, `${index} of ${lost} of ${count}`);
        }
      }
      if (count >= 3) expect(attempt([0, 1, 2], { p, q })).toBeNull();
      if (count >= 2) expect(attempt([0, 1], { p, q: null })).toBeNull();
      expect(attempt([0], { p: null, q: null })).toBeNull();
    }
  }));

test('two groups merged are the group of all their packs', () =>
  withSeed(runSeed, (random) => {
    for (let round = 0; round < 20; round += 1) {
      const packs = Array.from({ length: 2 + random(6) }, () => randomBytes(random, 1 + random(70_000)));
      const cut = 1 + random(packs.length - 1);
      const [whole, first, second] = [1, 2, 3].map(() => new GroupParity(['p', 'q'])) as [
        GroupParity,
        GroupParity,
        GroupParity,
      ];
      for (const [index, bytes] of packs.entries()) {
        const member = memberOf(String(index), bytes, sum);
        whole.add(member, bytes);
        (index < cut ? first : second).add(member, bytes);
      }
      const merged = GroupParity.from(first.files('g'));
      merged.merge(second);
      expect(merged.members).toEqual(whole.members);
      for (const [index, { parity }] of merged.files('g').entries())
        expectSame(
          parity,
          whole.files('g')[index]!.parity,
          `${packs.length} packs cut at ${cut}, file ${index}`,
        );
    }
  }));

describe.each([1, 2] as const)('redundancy %i', (redundancy) => {
  test.each([1, 2])(
    'a group of %i packs: any so many files lost or rotten are read through, and made again',
    (packs) => loseAll(packs, redundancy),
  );

  test('one file more than that: exactly what is lost is named, and nothing else is touched', () =>
    loseTooMany(redundancy));

  test('a bit flipped in every byte of the header of a parity file: that file is damaged, and nothing else', () =>
    flipHeaders(redundancy, (index) => [index % 8]));
});

test('a pack that lies where another should be gets no parity, though it is whole', async () => {
  for (const passphrase of [undefined, 'sesame']) {
    const options = passphrase === undefined ? {} : { passphrase };
    const store = new MemoryStore();
    const repository = await newRepository(store, { redundancy: 1, ...options });
    const image = randomBytes(seededRandom(6), 5000);
    const backup = (await repository.createBackup({ source: deviceOf(image), array: 'demo' }))!;
    for (const name of store.files.keys()) if (name.startsWith('parity/')) store.files.delete(name);
    const [pack, other] = [...store.files.keys()].filter((name) => name.startsWith('packs/'));
    const good = store.files.get(pack!)!;
    // Encrypted packs are padded, and mostly of one length.
    store.files.set(pack!, store.files.get(other!)!);
    for (const work of ['repair', 'createBackup'] as const) {
      const hurt = await Repository.open(store, options);
      if (work === 'repair') await hurt.repair();
      else await hurt.createBackup({ source: deviceOf(image), array: 'again' });
      const lists = [...store.files].flatMap(([name, bytes]) => (name.startsWith('parity/') ? [bytes] : []));
      for (const list of lists)
        expect(Buffer.from(list).toString('latin1'), work).not.toContain(pack!.slice('packs/'.length));
    }
    store.files.set(pack!, good);
    expectSame(await restored(await Repository.open(store, options), backup), image, 'with the pack again');
  }
});
