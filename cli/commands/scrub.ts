/** Compares redundancy with the data. */
import { type Command, Option } from 'commander';
import type { Place } from '../operations.ts';
import { examples, jsonOption, quietOption } from '../options.ts';

interface Options {
  readonly check?: boolean;
  readonly repair?: boolean;
  readonly from: string;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const DEGRADED = 10;
const MISMATCHES = 12;
/** More are counted, and listed with --json. */
const LISTED = 20;

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .addOption(new Option('--check', 'compare and report (the default)').conflicts('repair'))
    .option('--repair', 'make redundancy agree with the data again')
    .option('--from <size>', 'begin where an interrupted scrub said that it stopped', '0')
    .addOption(jsonOption('progress and mismatches as JSON lines, and a last one of type "summary"'))
    .addOption(quietOption())
    .action(async (folder: string, options: Options) => {
      await run(folder, options);
    });
  examples(
    command,
    [
      'raidsim scrub demo',
      'raidsim scrub demo --repair',
      'raidsim scrub demo --from 96M',
      'raidsim scrub demo --json | jq \'select(.type == "mismatch")\'',
    ],
    `A repair takes data for right and computes parity anew; of copies, the first is right. Sectors count from the start of
a disk's data, as in md. The disk that is wrong is named where two parities, or a majority of copies, can tell.

What has lost its redundancy, since a disk is missing, has nothing to be compared with: that is said, and is no agreement.

Exit codes: 0 all agrees, 10 not all could be compared, 12 mismatches remain, 130 interrupted.`,
  );
}

async function run(folder: string, options: Options): Promise<void> {
  const { newDiskPath, shellWord } = await import('../array.ts');
  const { Interrupt, INTERRUPTED, printJsonLine, Progress, untilAsked } = await import('../progress.ts');
  const { reach } = await import('../reach.ts');
  const { duration, paint } = await import('../render.ts');
  const { formatSize, parseSize } = await import('../../lib/index.ts');

  const fromBytes = parseSize(options.from);
  using interrupt = new Interrupt();
  const reached = await reach(folder, { writes: options.repair === true });
  const { facts, manifest } = reached;
  const progress = new Progress({ json: options.json === true, quiet: options.quiet === true });
  const say = (text: string): void => {
    if (options.json === true || options.quiet === true) return;
    progress.clear();
    process.stdout.write(`${text}\n`);
  };
  const isRepair = options.repair === true;
  let count = 0;
  let listed = 0;
  let doneBytes = fromBytes;
  let totalBytes = 0;
  let comparedBytes = 0;
  /** Members that hold wrong data, which a repair takes for right. */
  const misled = new Set<string>();
  try {
    const steps = reached.run('scrub', { repair: isRepair, fromBytes });
    for await (const step of untilAsked(steps, interrupt.signal)) {
      ({ doneBytes, totalBytes, comparedBytes, mismatchCount: count } = step);
      for (const place of step.places) {
        if (place.wrong === 'data' && place.member !== null) misled.add(place.member);
        if (options.json === true) printJsonLine({ type: 'mismatch', ...place });
        else if (listed < LISTED) say(`  ${textOf(place, facts.layoutKind)}`);
        listed += 1;
      }
      progress.show(
        { action: step.action, doneBytes, totalBytes },
        { mismatchCount: count },
        count === 0 ? '' : plural(count),
      );
    }
  } finally {
    progress.clear();
    await reached.close();
  }

  const isInterrupted = interrupt.isAsked && doneBytes < totalBytes;
  const remaining = isRepair ? 0 : count;
  const missedBytes = Math.max(0, doneBytes - fromBytes - comparedBytes);
  process.exitCode = isInterrupted
    ? INTERRUPTED
    : remaining > 0
      ? MISMATCHES
      : missedBytes > 0
        ? DEGRADED
        : 0;
  if (options.json === true) {
    return printJsonLine({
      type: 'summary',
      action: isRepair ? 'repair' : 'check',
      fromBytes,
      doneBytes,
      totalBytes,
      comparedBytes,
      mismatches: count,
      remaining,
      interrupted: isInterrupted,
      seconds: Math.round(progress.seconds * 1000) / 1000,
    });
  }
  if (listed > LISTED) say(`  and ${count - LISTED} more; --json names them`);
  const name = paint('bold', facts.name);
  const scrubAgain = `raidsim scrub ${shellWord(folder)}${isRepair ? ' --repair' : ''}`;
  const whole = formatSize(totalBytes);
  const where = fromBytes === 0 ? `in ${whole}` : `from ${formatSize(fromBytes)} to ${whole}`;
  if (isInterrupted) {
    const at = `${formatSize(doneBytes)} of ${whole}`;
    const repaired =
      isRepair && count > 0 ? (count === 1 ? ', which is repaired' : ', which are repaired') : '';
    process.stderr.write(
      `interrupted at ${at}, with ${plural(count)} until there${repaired}; to go on: ${scrubAgain} --from ${doneBytes}\n`,
    );
  } else if (totalBytes === 0) {
    say(`${name} has no redundancy: there is nothing to compare`);
  } else if (comparedBytes === 0 && missedBytes > 0) {
    say(`nothing could be compared: ${name} is degraded, and has no redundancy left`);
  } else if (count === 0) {
    say(`${name}: no mismatch ${where}, after ${duration(progress.seconds)}`);
    if (missedBytes > 0)
      say(`  but ${formatSize(missedBytes)} of it could not be compared: a disk is missing there`);
  } else if (isRepair) {
    const kept = misled.size === 0 ? '' : `; the data of ${[...misled].join(', ')} was wrong, and is kept`;
    say(`${name}: ${plural(count)} found and repaired ${where}, after ${duration(progress.seconds)}${kept}`);
  } else if (misled.size > 0) {
    const [first = ''] = misled;
    const array = shellWord(folder);
    const onto = shellWord(newDiskPath(folder, manifest));
    say(
      `${name}: ${plural(count)} ${where}; a repair would keep the wrong data of ${[...misled].join(', ')}. To compute ${first} anew from the others:
  ${paint('bold', `raidsim fail ${array} ${shellWord(first)}`)}
  ${paint('bold', `raidsim rebuild ${array} --onto ${onto}`)}`,
    );
  } else {
    say(
      `${name}: ${plural(count)} ${where}; to make redundancy agree with the data again: ${paint('bold', `${scrubAgain} --repair`)}`,
    );
  }
}

function plural(count: number): string {
  return count === 1 ? '1 mismatch' : `${count} mismatches`;
}

function textOf({ member, wrong, sector, sectors, stripe }: Place, kind: 'copies' | 'parity'): string {
  const where = sectors === 1 ? `sector ${sector}` : `sectors ${sector} to ${sector + sectors - 1}`;
  const row = stripe === null ? '' : `stripe ${stripe}: `;
  return `${row}${where} of ${claim()}`;

  function claim(): string {
    if (member === null) return 'its disks: data and parity do not agree';
    if (wrong === null) return `${member} ${sectors === 1 ? 'differs' : 'differ'} from the first copy`;
    const words = {
      parity: { data: 'data', redundancy: 'parity' },
      copies: { data: 'first copy', redundancy: 'copy' },
    };
    return `${member} ${sectors === 1 ? 'is' : 'are'} wrong (${words[kind][wrong]})`;
  }
}
