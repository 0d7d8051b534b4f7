/** What to do with the image of a whole disk, where the member of an array is one of its partitions. */
import { examineMember, FileDevice, placeOf, RaidError, readPartitions } from '../lib/index.ts';

/** Members of one array that are partitions of whole disks. */
interface Found {
  readonly name: string;
  readonly level: string;
  readonly members: readonly { readonly file: string; readonly number: number }[];
}

/**
 * What to say where nothing was found on these files, and some have partitions that are members of arrays; '' where none has. `command`
 * is what opens these.
 */
export async function partitionHint(
  files: readonly string[],
  command: (sources: readonly string[]) => string,
): Promise<string> {
  const found = await membersIn(files);
  if (found.length === 0) return '';
  const lines = found.map(({ name, level, members }) => {
    const sources = members.map(({ file, number }) => `${file}#${number}`);
    return `\n  ${name}, ${level}${command(sources)}`;
  });
  return `\n${files.length === 1 ? 'But it is a whole disk' : 'But there are whole disks among these'}, with partitions that are members of${lines.join('')}`;
}

async function membersIn(files: readonly string[]): Promise<readonly Found[]> {
  const found = new Map<string, Found>();
  for (const file of files) {
    for (const { number, json } of await examinePartitions(file)) {
      const uuid = String(json['arrayUuid']);
      const { name, level, members } = found.get(uuid) ?? {
        name: String(json['arrayName']),
        level: String(json['level']),
        members: [],
      };
      found.set(uuid, { name, level, members: [...members, { file, number }] });
    }
  }
  return [...found.values()];
}

interface Examined {
  readonly number: number;
  readonly json: Record<string, unknown>;
}

/** None of what cannot be read, or is no disk with partitions. */
async function examinePartitions(file: string): Promise<readonly Examined[]> {
  const place = await placeOf(file);
  if (place === null || place.partition !== null) return [];
  const examined: Examined[] = [];
  try {
    await using disk = await FileDevice.open(place.path, { readOnly: true });
    for (const { number } of await readPartitions(disk)) {
      const member = await examineMember(`${file}#${number}`).catch(unlessOurs);
      if (member !== null) examined.push({ number, json: member.json });
    }
  } catch (error) {
    unlessOurs(error);
  }
  return examined;
}

function unlessOurs(error: unknown): null {
  if (error instanceof RaidError) return null;
  throw error;
}
