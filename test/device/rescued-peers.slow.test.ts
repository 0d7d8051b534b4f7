/** Copies that ddrescue makes, of parts of a disk: what it says it has read is there, and nothing else can be read. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { FileDevice } from '../../lib/device/file.ts';
import { findRescueMap, RescuedDevice } from '../../lib/device/rescued.ts';
import { seededRandom } from '../../lib/host.ts';
import { programPath } from '../linux/kernel.ts';
import { needPeer } from '../peer.ts';

const work = mkdtempSync(join(tmpdir(), 'raidsim-ddrescue-'));
afterAll(() => rmSync(work, { recursive: true, force: true }));

const SECTORS = 2048;
const HEAD = '# Mapfile. Created by GNU ddrescue version 1.27\n0x0 ? 1\n';

test('ddrescue and ddrescuelog', async (context) => {
  needPeer(programPath('ddrescue') !== null, { program: 'ddrescue', from: 'gddrescue' }, context);
  const path = (name: string): string => join(work, name);
  const disk = Uint8Array.from({ length: SECTORS * 512 }, (_, at) => (at * 31 + (at >> 9)) & 255);
  writeFileSync(path('disk'), disk);
  for (let seed = 1; seed <= 8; seed += 1) {
    const random = seededRandom(seed);
    const lines: string[] = [];
    for (let sector = 0; sector < SECTORS; ) {
      const count = Math.min(1 + random(60), SECTORS - sector);
      lines.push(`${sector * 512} ${count * 512} ${random(3) === 0 ? '-' : '+'}`);
      sector += count;
    }
    writeFileSync(path('domain.map'), `${HEAD}${lines.join('\n')}\n`);
    rmSync(path('copy.img'), { force: true });
    rmSync(path('copy.map'), { force: true });
    const from = ['--quiet', `--domain-mapfile=${path('domain.map')}`, path('disk')];
    execFileSync('ddrescue', [...from, path('copy.img'), path('copy.map')]);
    const listed = execFileSync('ddrescuelog', ['--list-blocks=+', path('copy.map')], { encoding: 'utf8' });
    const isRead = new Set(listed.split('\n').filter(Boolean).map(Number));
    expect(isRead.size).toBeGreaterThan(0);
    const map = await findRescueMap(path('copy.img'), statSync(path('copy.img')).size);
    expect(map?.path).toBe(path('copy.map'));
    await using copy = new RescuedDevice(await FileDevice.open(path('copy.img'), { readOnly: true }), map!);
    for (let sector = 0; sector < SECTORS; sector += 1) {
      const target = new Uint8Array(512);
      const error = await copy.read(sector * 512, target).then(
        () => null,
        (reason: unknown) => reason,
      );
      const says = `seed ${seed}, sector ${sector}:\n${readFileSync(path('copy.map'), 'utf8')}`;
      if (isRead.has(sector))
        expect(Buffer.compare(target, disk.subarray(sector * 512, (sector + 1) * 512)), says).toBe(0);
      else expect(error, says).toMatchObject({ code: 'MEDIUM_ERROR' });
    }
  }
});
