import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const rooms = fileURLToPath(new URL('../../lib/parity/', import.meta.url));

test('the committed modules are what their source compiles to', () => {
  const folder = mkdtempSync(join(tmpdir(), 'raidsim-kernels-'));
  try {
    execFileSync(process.execPath, [join(rooms, 'assembly/build.mjs'), folder]);
    for (const name of ['simd.wasm', 'relaxed.wasm']) {
      const same = readFileSync(join(folder, name)).equals(readFileSync(join(rooms, name)));
      expect(same, `${name} is older than its source: run npm run build:kernels`).toBe(true);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
