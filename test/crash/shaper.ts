/**
 * The process that is killed while it makes an array or makes it larger. What it is to do comes as JSON in its only
 * argument; it says when it begins, and ends by itself if nobody is quicker. Run from dist, as a program.
 */
import type { CreateOptions } from '../../lib/array/folder.ts';
import { createArray, growArray } from '../../lib/array/folder.ts';
import type { GrowOptions } from '../../lib/array/grow.ts';

export interface ShapeTask {
  readonly folder: string;
  readonly create?: CreateOptions;
  readonly grow?: GrowOptions;
}

const { folder, create, grow } = JSON.parse(process.argv[2] ?? '') as ShapeTask;
process.stdout.write('ready\n');
if (create !== undefined) await (await createArray(folder, create)).close();
if (grow !== undefined) await (await growArray(folder, grow, { autoSync: false })).close();
