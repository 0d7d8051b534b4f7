/** How verbs come by a repository: where it is, its passphrase, and what a person calls a backup. */
import { readFile } from 'node:fs/promises';
import type { CreateRepositoryOptions, Repository as RepositoryType } from '../lib/index.ts';
import { isObjectStore, openStore, RaidError, Repository } from '../lib/index.ts';
import { commandLine } from './array.ts';

export interface RepositoryChoice {
  readonly repo?: string;
  readonly passphraseFile?: string;
}

/** From a file or the environment: on a command line, everybody on the machine could read it. */
async function passphraseOf({ passphraseFile }: RepositoryChoice): Promise<string | undefined> {
  if (passphraseFile === undefined) return process.env['RAIDSIM_PASSPHRASE'];
  const text = await readFile(passphraseFile, 'utf8');
  return text.replace(/\r?\n$/, '');
}

async function storeOf(repo: string): ReturnType<typeof openStore> {
  const [id, secret] = [process.env['AWS_ACCESS_KEY_ID'], process.env['AWS_SECRET_ACCESS_KEY']];
  if (isObjectStore(repo) && (id === undefined || secret === undefined)) {
    throw new RaidError(
      'BAD_ARGUMENT',
      `${repo} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment`,
    );
  }
  const token = process.env['AWS_SESSION_TOKEN'];
  const region = process.env['AWS_REGION'];
  return await openStore(repo, {
    accessKeyId: id ?? '',
    secretAccessKey: secret ?? '',
    ...(token === undefined ? {} : { sessionToken: token }),
    ...(region === undefined ? {} : { region }),
  });
}

function locationOf({ repo }: RepositoryChoice): string {
  const found = repo ?? process.env['RAIDSIM_REPO'];
  if (found !== undefined && found !== '') return found;
  throw new RaidError('BAD_ARGUMENT', 'say where the repository is: --repo DIR, or RAIDSIM_REPO');
}

export async function openRepository(choice: RepositoryChoice): Promise<RepositoryType> {
  const repo = locationOf(choice);
  const passphrase = await passphraseOf(choice);
  const store = await storeOf(repo);
  try {
    return await Repository.open(store, {
      ...(passphrase === undefined ? {} : { passphrase }),
      notice: (text) => process.stderr.write(`${text}\n`),
    });
  } catch (error) {
    const isEmpty = (await store.list('').catch(() => ['unknown'])).length === 0;
    throw withNextStep(error, repo, { hasNoPassphrase: passphrase === undefined, isEmpty });
  }
}

function withNextStep(
  error: unknown,
  repo: string,
  { hasNoPassphrase, isEmpty }: { readonly hasNoPassphrase: boolean; readonly isEmpty: boolean },
): unknown {
  if (!(error instanceof RaidError)) return error;
  if (error.code === 'WRONG_PASSPHRASE' && hasNoPassphrase) {
    return new RaidError(
      error.code,
      `${repo} is encrypted: give its passphrase with --passphrase-file, or in RAIDSIM_PASSPHRASE`,
      { cause: error },
    );
  }
  if (error.code !== 'NO_SUCH_REPOSITORY' || !isEmpty) return error;
  return new RaidError(
    error.code,
    `${error.message}; a backup makes one where there is nothing:${commandLine('backup', 'create', 'ARRAY', '--repo', repo)}`,
    { cause: error },
  );
}

/** Who has no room is told how to get back what the attempt took. */
export function withRoom(error: unknown, choice: RepositoryChoice): unknown {
  if (!(error instanceof RaidError) || error.code !== 'NO_SPACE') return error;
  return new RaidError(
    error.code,
    `${error.message}; there is no backup, and the next one goes on from what was stored, or that is given back by:${commandLine('backup', 'prune', '--repo', locationOf(choice))}`,
    { cause: error },
  );
}

/** Who has no room for what makes room is told how little it takes. */
export function withLittleRoom(error: unknown): unknown {
  if (!(error instanceof RaidError) || error.code !== 'NO_SPACE') return error;
  return new RaidError(
    error.code,
    `${error.message}; a prune needs room for a few small files before it gives any back: make that much, and prune again`,
    { cause: error },
  );
}

/** Says so where a backup is read that cannot be held. */
export function saysUnheld(repository: RepositoryType, id: string): () => void {
  return () => {
    process.stderr.write(
      `nothing can be written in ${repository.name}, so a prune elsewhere will not know that ${id} is being read\n`,
    );
  };
}

export interface Opened {
  readonly repository: RepositoryType;
  readonly isNew: boolean;
}

/** The repository, made if there is nothing. What only a new one can be given is refused of one that is there. */
export async function openOrCreateRepository(
  choice: RepositoryChoice,
  shape: Pick<CreateRepositoryOptions, 'redundancy' | 'chunkBytes'>,
): Promise<Opened> {
  const repo = locationOf(choice);
  const store = await storeOf(repo);
  const passphrase = await passphraseOf(choice);
  const options = passphrase === undefined ? {} : { passphrase };
  // Of a folder with anything else in it, create says that it holds data.
  if ((await store.list('settings.')).length === 0) {
    return { repository: await Repository.create(store, { ...options, ...shape }), isNew: true };
  }
  const repository = await openRepository(choice);
  for (const [name, wanted] of Object.entries(shape)) {
    const found = repository.settings[name as keyof typeof shape];
    if (wanted === undefined || wanted === found) continue;
    const option = name === 'redundancy' ? '--redundancy' : '--chunk';
    throw new RaidError(
      'BAD_ARGUMENT',
      `${repo} was made with ${option} ${found}, which stays; ${option} ${wanted} needs a new repository`,
    );
  }
  return { repository, isNew: false };
}
