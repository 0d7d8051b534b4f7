/**
 * Programs by others, which tests compare with. Where one is missing its test is skipped, and says so; on a machine that
 * checks submissions they have been installed (.ci/run), so there it fails: a comparison that was not made is not green.
 */
export interface Skipping {
  skip(note?: string): never;
}

export function needPeer(
  isThere: boolean,
  { program, from }: { readonly program: string; readonly from: string },
  context: Skipping,
): void {
  if (isThere) return;
  const says = `${program} is not here: apt-get install ${from}`;
  if (process.env['CI'] === 'true') throw new Error(says);
  context.skip(says);
}
