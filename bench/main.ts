/** `npm run bench`: all levels, all works, all kernels; the tables here, and everything in bench/results/latest.json. */
import { writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { outputFile } from 'fs-extra/esm';
import { type Comparison, compare } from './compare.ts';
import { comparisonHtml } from './html.ts';
import { tableOf } from './kernels.ts';
import { BELOW, comparisonText } from './text.ts';

/** Of a plain copy that moves as many bytes. */
const KERNEL_AIM = 0.9;
const KERNEL_AIM_BYTES = 16 * 1024 * 1024;

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { quick: { type: 'boolean' }, html: { type: 'string' } } });
  const comparison = await compare({
    quick: values.quick === true,
    onProgress: ({ done, total, what }) => process.stderr.write(`${done + 1}/${total} ${what}\n`),
  });
  process.stdout.write(`\n${comparisonText(comparison)}\nkernels, 4 chunks of data\n`);
  process.stdout.write(`${tableOf(comparison.kernels)}\n${kernelAims(comparison)}\n`);
  // dist/bench/main.js: the package is two folders up.
  const path = fileURLToPath(new URL('../../bench/results/latest.json', import.meta.url));
  await outputFile(path, `${JSON.stringify(comparison, null, 2)}\n`);
  process.stdout.write(`\nall of it: ${path}\n`);
  if (values.html !== undefined) await writeFile(values.html, comparisonHtml(comparison));
}

function kernelAims({ kernels, setting }: Comparison): string {
  const rows = kernels.filter(
    ({ kernel, operation, lengthBytes }) =>
      kernel === setting.kernel &&
      lengthBytes === KERNEL_AIM_BYTES &&
      (operation === 'xor' || operation === 'syndrome'),
  );
  const said = rows.map(
    ({ operation, ratio }) => `${operation} ${ratio.toFixed(2)}${ratio < KERNEL_AIM ? ` ${BELOW}` : ''}`,
  );
  return `aim: xor and syndrome of 16 MiB at ${KERNEL_AIM} of the copy or more; ${setting.kernel}: ${said.join(', ')}`;
}

await main();
