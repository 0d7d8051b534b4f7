/** `path lint`: the files that say how disks are reached, and what they mean together. */
import { readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import {
  CONF_NAME,
  type Diagnostic,
  defaultPlan,
  describeDiagnostic,
  type FabricPlan,
  hasPaths,
  type LintLun,
  lintConf,
  lintManifest,
  lintSources,
  MANIFEST_NAME,
  memberNames,
  RaidError,
} from '../lib/index.ts';
import { statOf } from './array.ts';
import { paint } from './render.ts';

export interface PathLint {
  readonly diagnostics: readonly (Diagnostic & { readonly file: string })[];
  readonly luns: readonly LintLun[];
}

/** An array, its raidsim.json, or a multipath.conf, which alone is told for so many HBAs and controllers. */
export async function lintPaths(
  target: string,
  { hbas, controllers }: { readonly hbas?: number; readonly controllers?: number },
): Promise<PathLint> {
  const there = await statOf(target);
  if (there === null)
    throw new RaidError('NO_SUCH_ARRAY', `there is no array, raidsim.json or multipath.conf ${target}`);
  const folder = there.isDirectory()
    ? target
    : basename(target) === MANIFEST_NAME
      ? join(target, '..')
      : null;
  const asked = (): FabricPlan => defaultPlan(hbas ?? 2, controllers ?? 2);
  if (folder === null) {
    const { diagnostics, luns } = lintConf(await textOf(target), asked(), ['any disk']);
    return { diagnostics: inFile(target, diagnostics), luns };
  }
  if (hbas !== undefined || controllers !== undefined)
    throw new RaidError('BAD_ARGUMENT', `${target} says itself which HBAs and controllers there are`);
  const path = join(folder, MANIFEST_NAME);
  const { plan, members, sources, diagnostics } = lintManifest(await readFile(path, 'utf8'), memberNames);
  const found = inFile(path, diagnostics);
  if (diagnostics.some(({ kind }) => kind === 'error')) return { diagnostics: found, luns: [] };
  const remote = members.flatMap((name, index) => {
    const source = sources[index];
    return source !== undefined && hasPaths(source) ? [{ name, source }] : [];
  });
  if (plan === null && remote.length === 0)
    throw new RaidError(
      'BAD_ARGUMENT',
      `${folder} has no fabric, and no member that several NBD URIs lead to`,
    );
  const conf = join(folder, CONF_NAME);
  const text = await textOf(conf);
  const reports = [
    ...(plan === null ? [] : [lintConf(text, plan, members)]),
    ...(remote.length === 0 ? [] : [lintSources(text, remote)]),
  ];
  return {
    diagnostics: [...found, ...inFile(conf, reports[0]?.diagnostics ?? [])],
    luns: reports.flatMap(({ luns }) => luns),
  };
}

/** One that is not there means what its absence does. */
async function textOf(path: string): Promise<string> {
  return (await statOf(path)) === null ? '' : await readFile(path, 'utf8');
}

function inFile(file: string, diagnostics: readonly Diagnostic[]): PathLint['diagnostics'] {
  return diagnostics.map((each) => ({ file, ...each }));
}

/** `onlyErrors`: nothing for a file without. */
export function lintWords({ diagnostics, luns }: PathLint, onlyErrors: boolean): string {
  const told = onlyErrors ? diagnostics.filter(({ kind }) => kind === 'error') : diagnostics;
  const lines = told.map((each) => {
    const text = describeDiagnostic(each, each.file);
    return each.kind === 'error' ? `${paint('red', 'error')} ${text}` : `${each.kind} ${text}`;
  });
  if (onlyErrors) return lines.join('\n');
  return [...lines, ...luns.flatMap(lunWords)].join('\n');
}

function lunWords(lun: LintLun): readonly string[] {
  const { paths, failuresSurvived, singlePointsOfFailure, longestStallMs } = lun;
  const survived = failuresSurvived === 0 ? 'no failure' : `any ${failuresSurvived}`;
  const points =
    singlePointsOfFailure.length === 0
      ? ''
      : `; ${paint('red', `single points of failure: ${singlePointsOfFailure.join(', ')}`)}`;
  return [
    `${paint('bold', lun.names.join(', '))}: ${paths} ${paths === 1 ? 'path' : 'paths'}, survives ${survived}${points}`,
    `  longest stall of a request: ${longestStallMs === null ? 'for ever' : `${longestStallMs / 1000} s`}`,
    ...lun.meaning.map((words) => `  ${words}`),
  ];
}
