/**
 * Builds ../simd.wasm and ../relaxed.wasm from kernels.ts; with a folder as argument, writes them there instead.
 * Both files are committed, so that neither installing nor building raidsim needs AssemblyScript; a test builds them
 * anew and compares.
 */
import { fileURLToPath } from 'node:url';
import asc from 'assemblyscript/asc';

const folder = process.argv[2] ?? fileURLToPath(new URL('..', import.meta.url));
const source = fileURLToPath(new URL('kernels.ts', import.meta.url));

// 65536 pages = 4 GiB, the most that 32-bit addresses reach: a memory with any smaller maximum can then be imported.
const common = [
  source, '-O3', '--noAssert', '--runtime', 'stub',
  '--enable', 'simd', '--enable', 'threads', '--enable', 'bulk-memory',
  '--importMemory', '--sharedMemory', '--initialMemory', '1', '--maximumMemory', '65536',
];

for (const [name, extra] of [['simd', []], ['relaxed', ['--enable', 'relaxed-simd']]]) {
  const { error, stderr } = await asc.main([...common, ...extra, '--outFile', `${folder}/${name}.wasm`]);
  if (error !== null) {
    process.stderr.write(stderr.toString());
    throw error;
  }
}
