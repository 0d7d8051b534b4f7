/** Makes an array. */
import { type Command, Option } from 'commander';
import type { CreateOptions } from '../../lib/index.ts';
import { count, examples, jsonOption, quietOption, SIZES } from '../options.ts';

interface Options {
  readonly level?: string;
  readonly disks?: number;
  readonly spares?: number;
  readonly size?: string;
  readonly chunk?: string;
  readonly layout?: string;
  readonly bitmap?: 'internal' | 'none';
  readonly consistencyPolicy?: 'resync' | 'bitmap' | 'ppl';
  readonly metadata: '1.2' | '1.1' | '1.0';
  readonly name?: string;
  readonly assumeClean?: boolean;
  readonly force?: boolean;
  readonly seed?: number;
  readonly hbas?: number;
  readonly controllers?: number;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function define(command: Command): void {
  command
    .argument('<array>', 'folder for the array; made if it is not there')
    .argument(
      '[file...]',
      'its disks: files, block devices or nbd:// URIs; with --size, missing ones are made',
    )
    .option('-l, --level <level>', 'linear, 0, 1, 4, 5, 6 or 10; also raid5, stripe, mirror')
    .option('-n, --disks <n>', 'disks that hold the array, spares not counted', count)
    .option('-x, --spares <n>', 'disks that wait (default: 0)', count)
    .option('-z, --size <size>', 'of each file that is made (default: 256M)')
    .option('-c, --chunk <size>', 'default: 512K, as mdadm')
    .option('-p, --layout <name>', 'left-symmetric ..., near=2 or n2, far=2 or f2, offset=2 or o2')
    .addOption(new Option('-b, --bitmap <where>', 'write-intent bitmap').choices(['internal', 'none']))
    .addOption(
      new Option(
        '--consistency-policy <policy>',
        'what makes redundancy right after a crash (default: bitmap on disks of more than 100G, as mdadm)',
      ).choices(['resync', 'bitmap', 'ppl']),
    )
    .addOption(
      new Option('-e, --metadata <version>', 'of the superblocks')
        .choices(['1.2', '1.1', '1.0'])
        .default('1.2'),
    )
    .option('-N, --name <name>', "the array's own name, in its superblocks (default: the folder's)")
    .option('--assume-clean', 'no first sync: the disks given are known to agree')
    .option('-f, --force', 'take disks that hold something; what they hold is lost')
    .option('--hbas <n>', 'paths to every disk, by so many HBAs ...', count)
    .option('--controllers <n>', '... and so many controllers: see raidsim path', count)
    .option('--seed <n>', 'fixed UUIDs, for tests', count)
    .addOption(jsonOption())
    .addOption(quietOption())
    .action(async (folder: string, files: readonly string[], options: Options) => {
      await run(folder, files, options);
    });
  examples(
    command,
    [
      'raidsim create demo --level 5 --disks 4 --spares 1',
      'raidsim create big --level raid6 -n 6 --size 1G --chunk 64K --bitmap internal',
      'raidsim create far --level 10 --layout f2 --disks 4',
      'raidsim create mirror /data/a.img /data/b.img --level mirror',
      'raidsim create san --level 5 --disks 4 --hbas 2 --controllers 2',
      'raidsim create span --level 5 nbd://host1/disk nbd://host2/disk nbd://host3/disk',
      "raidsim create real --level 1 'nbd://host1/disk|nbd://host2/disk' disk1.img",
    ],
    SIZES,
  );
}

async function run(folder: string, files: readonly string[], options: Options): Promise<void> {
  const { createArray, formatSize, isThere, isUri, RaidError } = await import('../../lib/index.ts');
  const { checkFile, checkNewFolder, commandLine, inspectFolder, shellWord } = await import('../array.ts');
  const { printJson } = await import('../progress.ts');
  const { paint } = await import('../render.ts');

  const wrong = (text: string): never => {
    throw new RaidError('BAD_ARGUMENT', text);
  };
  const { level, disks, spares = 0 } = options;
  if (level === undefined) {
    return wrong(
      `say which level, --level 0, 1, 4, 5, 6, 10 or linear:${commandLine('create', folder, ...files, '--level', '5', ...(files.length > 0 ? [] : ['--disks', String(disks ?? 4)]))}`,
    );
  }
  if (files.length === 0 && disks === undefined) {
    return wrong(
      `say how many disks, or which files they are:${commandLine('create', folder, '--level', level, '--disks', '4')}`,
    );
  }
  if (files.length > 0 && disks !== undefined && disks + spares !== files.length) {
    const wanted = `${disks} disks${spares > 0 ? ` and ${spares} spares` : ''}`;
    return wrong(
      `${files.length} files are given for ${wanted}; leave --disks out, or make the numbers agree`,
    );
  }
  const shape = refuseLoneDisk(
    files.length > 0 ? files.length - spares : (disks ?? 0),
    options.force === true,
  );
  if (shape !== null) throw new RaidError('BAD_GEOMETRY', shape);
  await checkNewFolder(folder, 'create');
  for (const file of files) {
    // Made only where it is said how large: a name that is not there is a slip more often than a wish.
    if (options.size === undefined || isUri(file) || (await isThere(file))) await checkFile(file);
  }

  const create: CreateOptions = {
    level,
    disks,
    spares,
    diskSize: options.size,
    chunk: options.chunk,
    layout: options.layout,
    bitmap: options.bitmap,
    consistencyPolicy: options.consistencyPolicy,
    metadata: options.metadata,
    setName: options.name,
    assumeClean: options.assumeClean,
    force: options.force,
    seed: options.seed,
    hbas: options.hbas,
    controllers: options.controllers,
    members: files.length > 0 ? files : undefined,
    autoSync: false,
    cores: 1,
  };
  const array = await createArray(folder, create);
  await array.close();

  const { status, memberCount, sparedFailures } = await inspectFolder(folder);
  if (options.json === true) return printJson(status);
  if (options.quiet === true) return;
  const waiting = spares === 0 ? '' : `, ${spares} ${spares === 1 ? 'spare' : 'spares'}`;
  const promise = sparedFailures === 0 ? 'no disk may fail' : `any ${sparedFailures} of them may fail`;
  process.stdout.write(
    `${paint('bold', status.name)}: ${formatSize(status.sizeBytes)} on ${memberCount} ${memberCount === 1 ? 'disk' : 'disks'}${waiting}, ${status.level}; ${promise}\n`,
  );
  if (status.state === 'resyncing') {
    process.stdout.write(
      `its disks have to be made to agree first: ${paint('bold', `raidsim rebuild ${shellWord(folder)}`)}\n`,
    );
  }
}

/** As mdadm: an array of one is more often a slip than meant. */
function refuseLoneDisk(disks: number, isForced: boolean): string | null {
  return disks === 1 && !isForced
    ? 'an array of one disk is probably a mistake; --force makes it all the same'
    : null;
}
