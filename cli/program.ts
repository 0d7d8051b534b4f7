/** The command line: finds the verb, lets it work, and says what went wrong. The exit code is left in `process.exitCode`. */
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { verbs } from './verbs.ts';

const WRONG_CALL = 2;

export async function runCommandLine(args: readonly string[]): Promise<void> {
  const json = args.includes('--json');
  try {
    await callVerb(args, json);
  } catch (error) {
    if (error instanceof CommanderError) {
      // Help and version are asked for; anything else is a wrong call, and commander has said so already.
      if (error.exitCode !== 0) {
        process.exitCode = WRONG_CALL;
        const hint = misplacedVerb(args);
        if (hint !== null && !json) process.stderr.write(`${hint}\n`);
        if (json) {
          const { reportError } = await import('./render.ts');
          const message = [error.message.replace(/^error: /, ''), hint]
            .filter((text) => text !== null)
            .join('; ');
          reportError({ code: 'BAD_ARGUMENT', message, exitCode: WRONG_CALL, details: {} }, { json });
        }
      }
    } else {
      const { failure } = await import('./failure.ts');
      const { reportError } = await import('./render.ts');
      const found = await failure(error);
      process.exitCode = found.exitCode;
      reportError(found, { json });
    }
  }
}

function version(): string {
  // dist/cli/main.js: the package is two folders up.
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

async function callVerb(args: readonly string[], json: boolean): Promise<void> {
  const program = new Command('raidsim')
    .usage('<verb> ARRAY ...')
    .description('Software RAID in user space, over plain files: its arrays are Linux md arrays.')
    .version(version(), '-V, --version', 'the version')
    .helpOption('-h, --help', 'this help; `raidsim <verb> --help` for a verb')
    .helpCommand('help [verb]', 'the same')
    .showSuggestionAfterError()
    .showHelpAfterError('raidsim help shows what there is')
    .configureOutput({ writeErr: (text) => (json ? undefined : process.stderr.write(text)) })
    .exitOverride()
    .addHelpText(
      'after',
      `
An array is a folder. Disks are called by name (disk1), path or slot number. Sizes: 4096, 64K, 256M, 1G, 2T.

Examples:
  raidsim create demo --level 5 --disks 4 --spares 1
  raidsim write demo --from photos.tar
  raidsim fail demo disk1
  raidsim rebuild demo
  raidsim status demo

Exit codes: 0 done, 1 unexpected, 2 wrong call, 3 refused: what is on disk is not what it claims, 4 needs a person,
5 data lost: exactly this range, 6 outcome unknown, 10 degraded, 11 failed, 12 mismatches, 130 interrupted`,
    );
  const called = args.find((arg) => !arg.startsWith('-'));
  const wanted = called === 'help' ? args[args.indexOf('help') + 1] : called;
  for (const row of verbs) {
    const command = program.command(row.name).summary(row.summary).helpGroup(row.group);
    command
      .description(`${row.summary[0]?.toUpperCase()}${row.summary.slice(1)}.`)
      .helpOption('-h, --help', 'this help')
      .showHelpAfterError(`raidsim ${row.name} --help shows its options`);
    if (row.name === wanted) (await row.load()).define(command);
  }
  await program.parseAsync(args, { from: 'user' });
}

/** `raidsim demo status`: the verb stands where the array belongs. */
function misplacedVerb(args: readonly string[]): string | null {
  const [first, second, ...rest] = args;
  if (first === undefined || second === undefined || first.startsWith('-')) return null;
  const isVerb = (word: string): boolean => verbs.some(({ name }) => name === word);
  // `demo` is both a verb and what people call their first array.
  if (!isVerb(second) || second === 'demo' || (isVerb(first) && first !== 'demo')) return null;
  return `the verb comes first: raidsim ${[second, first, ...rest].join(' ')}`;
}
