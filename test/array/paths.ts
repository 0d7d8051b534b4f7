/** NBD servers of our own, several of which lead to one disk, to be ended and begun again at the same address. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device } from '../../lib/device/device.ts';
import { MemoryDevice } from '../../lib/device/memory.ts';
import { NbdServer } from '../../lib/nbd/server.ts';
import { MIB } from '../../lib/units.ts';
import { scratchFolder } from '../device/scratch.ts';

export class Doors implements AsyncDisposable {
  readonly folder: string;
  readonly #servers = new Map<string, NbdServer>();

  private constructor(folder: string) {
    this.folder = folder;
  }

  static async make(): Promise<Doors> {
    return new Doors(await scratchFolder());
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  uri(name: string): string {
    return `nbd+unix:///?socket=${this.path(`${name}.sock`)}`;
  }

  /** Its URI. */
  async begin(name: string, device: Device): Promise<string> {
    const server = new NbdServer({ exports: [{ name: 'disk', device }] });
    this.#servers.set(name, server);
    await server.listenUnix(this.path(`${name}.sock`));
    return this.uri(name);
  }

  async end(name: string): Promise<void> {
    await this.#servers.get(name)?.close(0);
    this.#servers.delete(name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const name of [...this.#servers.keys()]) await this.end(name);
    await rm(this.folder, { recursive: true });
  }
}

export function disk(sizeBytes = 8 * MIB): MemoryDevice {
  return new MemoryDevice({ sizeBytes });
}
