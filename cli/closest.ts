/** What was probably meant. Nothing here loads the library. */

/** The name that was probably meant: the only one that is closest, at most two slips away and not half of it wrong. */
export function closest(text: string, names: readonly string[]): string | null {
  const most = Math.min(2, Math.ceil(text.length / 2) - 1);
  const ranked = names
    .map((name) => ({ name, slips: distance(text.toLowerCase(), name.toLowerCase()) }))
    .toSorted((left, right) => left.slips - right.slips);
  const [first, second] = ranked;
  if (first === undefined || first.slips > most || first.slips === second?.slips) return null;
  return first.name;
}

/** Damerau-Levenshtein: letters put in, left out, replaced, or two neighbours swapped. */
function distance(from: string, to: string): number {
  const rows: number[][] = [Array.from({ length: to.length + 1 }, (_, column) => column)];
  for (let row = 1; row <= from.length; row += 1) {
    const line = [row];
    for (let column = 1; column <= to.length; column += 1) {
      const same = from[row - 1] === to[column - 1] ? 0 : 1;
      let least = Math.min(
        (rows[row - 1]?.[column] ?? 0) + 1,
        (line[column - 1] ?? 0) + 1,
        (rows[row - 1]?.[column - 1] ?? 0) + same,
      );
      if (row > 1 && column > 1 && from[row - 1] === to[column - 2] && from[row - 2] === to[column - 1])
        least = Math.min(least, (rows[row - 2]?.[column - 2] ?? 0) + 1);
      line.push(least);
    }
    rows.push(line);
  }
  return rows[from.length]?.[to.length] ?? 0;
}
