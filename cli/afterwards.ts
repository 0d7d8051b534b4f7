/** How verbs that change an array end: closed, looked at as anybody else would find it, and told. */
import type { Inspection } from '../lib/index.ts';
import { newDiskPath, shellWord } from './array.ts';
import { printJson } from './progress.ts';
import { inspect, type Reached } from './reach.ts';
import { paint, paintState, slotMap } from './render.ts';

export interface TellHow {
  readonly json?: boolean;
  readonly quiet?: boolean;
}

/** What was done, then in one line what the array is now, then what to do next. */
export async function tell(
  reached: Pick<Reached, 'folder' | 'manifest'>,
  how: TellHow,
  done: readonly string[],
): Promise<void> {
  const { folder, manifest } = reached;
  const inspection = await inspect(folder);
  if (how.json === true) return printJson(inspection.status);
  if (how.quiet === true) return;
  const lines = [...done, summaryOf(inspection)];
  const next = nextOf(inspection, folder, newDiskPath(folder, manifest));
  if (next !== null) lines.push(next);
  process.stdout.write(`${lines.join('\n')}\n`);
}

function summaryOf({ status, memberCount }: Inspection): string {
  const isUp = Array.from({ length: memberCount }, (_, slot) =>
    status.members.some((member) => member.slot === slot && member.state === 'in_sync'),
  );
  return `${paint('bold', status.name)} is ${paintState(status.state)} ${slotMap(isUp)}`;
}

function nextOf({ status, refusal }: Inspection, folder: string, newDisk: string): string | null {
  if (refusal !== null) return null;
  const array = shellWord(folder);
  const { state, members, consistencyPolicy, sync, served } = status;
  if (sync !== null) {
    const growing = members.find((member) => member.state === 'recovering' || member.state === 'replacement');
    const onto = growing === undefined ? '' : ` on ${growing.name}`;
    const what = served === null ? `to finish the rebuild${onto}` : `it is being rebuilt${onto}; to watch`;
    return `${what}: ${paint('bold', `raidsim rebuild ${array}`)}`;
  }
  if (state !== 'degraded' || consistencyPolicy === 'none') return null;
  const hasSpare = members.some((member) => member.state === 'spare');
  const command = hasSpare
    ? `raidsim rebuild ${array}`
    : `raidsim rebuild ${array} --onto ${shellWord(newDisk)}`;
  return `to have redundancy again: ${paint('bold', command)}`;
}
