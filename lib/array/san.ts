/**
 * The fabric between an array in a folder and its members, where its manifest has one. Which array goes through which is
 * known here and nowhere else: an array sees devices.
 */
import { readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Device } from '../device/device.ts';
import type { Host } from '../host.ts';
import { type Conf, parseConf } from '../multipath/conf.ts';
import { type FabricPlan, San, type SanStatus } from '../multipath/san.ts';
import type { RaidArray } from './array.ts';
import { pathsOf } from './paths.ts';

/** How paths are used; where it is not there, as multipathd does without it. */
export const CONF_NAME = 'multipath.conf';

const sans = new WeakMap<RaidArray, San>();

export async function openSan(folder: string, plan: FabricPlan, host: Host): Promise<San> {
  return new San(plan, { host, conf: await readMultipathConf(folder) });
}

/** Throws for one with errors, and names the first. */
export async function readMultipathConf(folder: string): Promise<Conf> {
  const path = join(folder, CONF_NAME);
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  return parseConf(text, { file: join(basename(folder), CONF_NAME) });
}

export function rememberSan(array: RaidArray, san: San | null): RaidArray {
  if (san !== null) sans.set(array, san);
  return array;
}

/** Every path to every member that has several. Null where there are none: all members are reached directly. */
export function pathsStatus(array: RaidArray): SanStatus | null {
  const san = sanOf(array);
  if (san !== null) return san.status();
  const luns = array.members.flatMap(({ descriptor, device, name }) => {
    const lun = pathsOf(array.metadata?.deviceOf(descriptor) ?? device, name);
    return lun === null ? [] : [lun];
  });
  return luns.length === 0 ? null : { luns, components: [], refusedLate: 0 };
}

/** null where no fabric is between it and its members. */
export function sanOf(array: RaidArray): San | null {
  return sans.get(array) ?? null;
}

/** A device that is to become a member, as the array is to see it; number `index` of them. */
export async function throughSan(
  array: RaidArray,
  device: Device,
  name: string,
  index: number,
): Promise<Device> {
  return (await sanOf(array)?.attach(name, index, device)) ?? device;
}
