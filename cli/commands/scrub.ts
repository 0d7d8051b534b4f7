/** Compares redundancy with the data. */
import { type Command, Option } from 'commander';
import type { RaidArray } from '../../lib/index.ts';
import { examples, jsonOption, quietOption } from '../options.ts';

interface Options {
  readonly check?: boolean;
  readonly repair?: boolean;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const MISMATCHES = 12;
/** More are counted, and listed with --json. */
const LISTED = 20;

export function define(command: Command): void {
  command
    .argument('<array>', 'folder of the array')
    .addOption(new Option('--check', 'compare and report (the default)').conflicts('repair'))
    .option('--repair', 'make redundancy agree with the data again')
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
      'raidsim scrub demo --json | jq \'select(.type == "mismatch")\'',
    ],
    `A repair takes data for right and computes parity anew; of copies, the first is right. Sectors count from the start of
a disk's data, as in md.

Exit codes: 0 all agrees, 12 mismatches remain, 130 interrupted.`,
  );
}

/** One place where redundancy and data do not agree. */
interface Place {
  /** Null where it is one of a stripe's members, and nobody can say which. */
  readonly member: string | null;
  readonly sector: number;
  readonly sectors: number;
  readonly stripe: number | null;
}

async function run(folder: string, options: Options): Promise<void> {
  const { open, shellWord } = await import('../array.ts');
  const { Interrupt, INTERRUPTED, printJsonLine, Progress, untilAsked } = await import('../progress.ts');
  const { duration, paint } = await import('../render.ts');
  const { formatSize } = await import('../../lib/index.ts');

  using interrupt = new Interrupt();
  const { array } = await open(folder, { writes: options.repair === true });
  const progress = new Progress({ json: options.json === true, quiet: options.quiet === true });
  const say = (text: string): void => {
    if (options.json === true || options.quiet === true) return;
    progress.clear();
    process.stdout.write(`${text}\n`);
  };
  const isRepair = options.repair === true;
  let count = 0;
  let listed = 0;
  let doneBytes = 0;
  let totalBytes = 0;
  try {
    for await (const step of untilAsked(array.scrub({ repair: isRepair }), interrupt.signal)) {
      ({ doneBytes, totalBytes, mismatchCount: count } = step);
      for (const mismatch of step.mismatches) {
        const place = placeOf(array, mismatch);
        if (options.json === true) printJsonLine({ type: 'mismatch', ...place });
        else if (listed < LISTED) say(`  ${textOf(place)}`);
        listed += 1;
      }
      progress.show(
        { action: step.action, doneBytes, totalBytes },
        { mismatchCount: count },
        count === 0 ? '' : `${count} mismatches`,
      );
    }
  } finally {
    progress.clear();
    await array.close();
  }

  const isInterrupted = interrupt.isAsked && doneBytes < totalBytes;
  const remaining = isRepair ? 0 : count;
  process.exitCode = isInterrupted ? INTERRUPTED : remaining > 0 ? MISMATCHES : 0;
  if (options.json === true) {
    return printJsonLine({
      type: 'summary',
      action: isRepair ? 'repair' : 'check',
      mismatches: count,
      remaining,
      interrupted: isInterrupted,
      seconds: Math.round(progress.seconds * 1000) / 1000,
    });
  }
  if (!isRepair && listed > LISTED) say(`  and ${count - LISTED} more; --json names them`);
  const name = paint('bold', array.name);
  if (isInterrupted) {
    const at = `${formatSize(doneBytes)} of ${formatSize(totalBytes)}`;
    process.stderr.write(
      `interrupted at ${at}, with ${count} mismatches until there${isRepair ? ', which are repaired' : ''}; a scrub begins anew: raidsim scrub ${shellWord(folder)}${isRepair ? ' --repair' : ''}\n`,
    );
  } else if (totalBytes === 0) {
    say(`${name} has no redundancy: there is nothing to compare`);
  } else if (count === 0) {
    say(`${name}: no mismatch in ${formatSize(totalBytes)}, after ${duration(progress.seconds)}`);
  } else if (isRepair) {
    say(`${name}: ${plural(count)} found and repaired, after ${duration(progress.seconds)}`);
  } else {
    say(
      `${name}: ${plural(count)}; to make redundancy agree with the data again: ${paint('bold', `raidsim scrub ${shellWord(folder)} --repair`)}`,
    );
  }
}

function plural(count: number): string {
  return count === 1 ? '1 mismatch' : `${count} mismatches`;
}

function placeOf(
  { layout, members }: RaidArray,
  {
    member: slot,
    offsetBytes,
    lengthBytes,
  }: { member: number | null; offsetBytes: number; lengthBytes: number },
): Place {
  const { geometry } = layout;
  const chunkBytes = 'chunkBytes' in geometry ? geometry.chunkBytes : 0;
  const named = members.find(({ state }) => 'slot' in state && state.slot === slot);
  return {
    member: slot === null ? null : (named?.name ?? `slot ${slot}`),
    sector: offsetBytes / 512,
    sectors: lengthBytes / 512,
    stripe: chunkBytes === 0 ? null : Math.floor(offsetBytes / chunkBytes),
  };
}

function textOf({ member, sector, sectors, stripe }: Place): string {
  const where = sectors === 1 ? `sector ${sector}` : `sectors ${sector} to ${sector + sectors - 1}`;
  const row = stripe === null ? '' : `stripe ${stripe}: `;
  return `${row}${where} of ${member === null ? 'its disks: data and parity do not agree' : `${member} differ from the first copy`}`;
}
