/**
 * Which backups stay. Each array is looked at by itself; a rule keeps the newest backup of each of the last n periods that
 * have one, and a backup stays if any rule keeps it. Periods are those of UTC, weeks begin on Monday (ISO 8601).
 *
 *   backups on 1., 2., 2. (twice), 5. of a month     keep daily 2: the 5th, and the later one of the 2nd
 */
import type { Backup } from './record.ts';

export interface KeepRules {
  readonly last?: number;
  readonly daily?: number;
  readonly weekly?: number;
  readonly monthly?: number;
}

const DAY_MS = 86_400_000;
/** 1970-01-01 was a Thursday. */
const MONDAY_MS = 4 * DAY_MS;

const periods: Readonly<Record<keyof KeepRules, (backup: Backup) => string>> = {
  last: ({ id }) => id,
  daily: ({ createdAt }) => String(Math.floor(Date.parse(createdAt) / DAY_MS)),
  weekly: ({ createdAt }) => String(Math.floor((Date.parse(createdAt) - MONDAY_MS) / (7 * DAY_MS))),
  monthly: ({ createdAt }) => new Date(createdAt).toISOString().slice(0, 7),
};

/** For each backup that stays, which rules keep it. Without any rule everything stays. */
export function retained(
  backups: readonly Backup[],
  rules: KeepRules,
): ReadonlyMap<string, readonly string[]> {
  const kept = new Map<string, string[]>();
  const asked = (Object.keys(periods) as (keyof KeepRules)[]).filter((rule) => rules[rule] !== undefined);
  if (asked.length === 0) return new Map(backups.map(({ id }) => [id, ['no rule']]));
  for (const ofArray of byArray(backups).values()) {
    const newestFirst = ofArray.toSorted((left, right) => right.number - left.number);
    for (const rule of asked) {
      const seen = new Set<string>();
      for (const backup of newestFirst) {
        const period = periods[rule](backup);
        if (seen.has(period)) continue;
        if (seen.size >= (rules[rule] ?? 0)) break;
        seen.add(period);
        kept.set(backup.id, [...(kept.get(backup.id) ?? []), rule]);
      }
    }
  }
  return kept;
}

function byArray(backups: readonly Backup[]): ReadonlyMap<string, readonly Backup[]> {
  const groups = new Map<string, Backup[]>();
  for (const backup of backups) {
    const key = JSON.stringify([backup.array, backup.uuid]);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [backup]);
    else group.push(backup);
  }
  return groups;
}
