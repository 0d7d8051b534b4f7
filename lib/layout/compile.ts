/** From the shape of an array to the functions that say where its bytes are. */
import { unreachable } from '../errors.ts';
import type { CopiesGeometry, Geometry, ParityGeometry } from './geometry.ts';
import type { CopiesLayout, Layout, ParityLayout } from './layout.ts';
import { compileLinear } from './linear.ts';
import { compileRaid0 } from './raid0.ts';
import { compileRaid1 } from './raid1.ts';
import { compileRaid10 } from './raid10.ts';
import { compileParity } from './raid456.ts';

/** Throws `BAD_GEOMETRY`, saying what would be right, where no array can have this shape. */
export function compileLayout(geometry: CopiesGeometry): CopiesLayout;
export function compileLayout(geometry: ParityGeometry): ParityLayout;
export function compileLayout(geometry: Geometry): Layout;
export function compileLayout(geometry: Geometry): Layout {
  switch (geometry.level) {
    case 'linear':
      return compileLinear(geometry);
    case 'raid0':
      return compileRaid0(geometry);
    case 'raid1':
      return compileRaid1(geometry);
    case 'raid4':
    case 'raid5':
    case 'raid6':
      return compileParity(geometry);
    case 'raid10':
      return compileRaid10(geometry);
    default:
      return unreachable(geometry);
  }
}
