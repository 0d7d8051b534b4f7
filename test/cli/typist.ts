/**
 * Types one line after the other into the built command line, within one process, for a test that forks it: starting Node
 * and loading the library costs ten times what most verbs do. Whether processes end as they should is tested with
 * processes (exit-codes.slow.test.ts).
 */
import type { Outcome } from './raidsim.ts';

type Write = typeof process.stdout.write;

const { runCommandLine } = (await import(
  new URL('../../../dist/cli/program.js', import.meta.url).href
)) as typeof import('../../cli/program.ts');

process.on('message', (args: readonly string[]) => {
  void typed(args).then((outcome) => process.send?.(outcome));
});

async function typed(args: readonly string[]): Promise<Outcome> {
  const written = { stdout: '', stderr: '' };
  const restore = (['stdout', 'stderr'] as const).map((name) => {
    const stream = process[name];
    const original = stream.write;
    stream.write = ((part: string | Uint8Array, ...rest: readonly unknown[]) => {
      written[name] += typeof part === 'string' ? part : Buffer.from(part).toString('latin1');
      const done = rest.at(-1);
      if (typeof done === 'function') done();
      return true;
    }) as Write;
    return () => {
      stream.write = original;
    };
  });
  process.exitCode = 0;
  try {
    await runCommandLine(args);
  } finally {
    for (const back of restore) back();
  }
  const code = Number(process.exitCode);
  process.exitCode = 0;
  return { code, ...written };
}
