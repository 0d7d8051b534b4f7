/**
 * The part of the WebAssembly API that is used here. Node has it; its types come with TypeScript's `dom` library only, which
 * would also declare a browser. Delete this file should `@types/node` ever declare the namespace.
 */
declare namespace WebAssembly {
  interface MemoryDescriptor {
    readonly initial: number;
    readonly maximum?: number;
    readonly shared?: boolean;
  }
  class Memory {
    constructor(descriptor: MemoryDescriptor);
    /** Replaced by a longer one when the memory grows; the shorter ones stay valid when it is shared. */
    readonly buffer: ArrayBufferLike;
    grow(pageCount: number): number;
  }
  class Module {
    constructor(bytes: Uint8Array);
  }
  class Instance {
    constructor(module: Module, imports: Readonly<Record<string, Readonly<Record<string, unknown>>>>);
    readonly exports: Readonly<Record<string, unknown>>;
  }
  class CompileError extends Error {}
}
