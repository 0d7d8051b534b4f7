/**
 * Every verb there is. A verb's file is loaded only when it is called, and the library only when its work begins, so
 * that help, completion and wrong calls answer at once.
 */
import type { Command } from 'commander';

/** What a verb's file exports. */
export interface Verb {
  /** Adds options, arguments, examples and the action. */
  define(command: Command): void;
}

export interface VerbRow {
  readonly name: string;
  readonly summary: string;
  readonly group: string;
  readonly load: () => Promise<Verb>;
}

const start = 'Start here:';
const arrays = 'Arrays:';
const disks = 'Disks of an array:';
const bytes = 'Bytes of an array:';
const backups = 'Snapshots and backups:';
const observe = 'Observe:';

export const verbs: readonly VerbRow[] = [
  {
    name: 'demo',
    summary: 'a tour: every claim it prints is checked',
    group: start,
    load: () => import('./commands/demo.ts'),
  },
  {
    name: 'create',
    summary: 'make an array, and files for its disks where none are given',
    group: arrays,
    load: () => import('./commands/create.ts'),
  },
  {
    name: 'assemble',
    summary: 'open disks that are there already, raidsim-made or mdadm-made',
    group: arrays,
    load: () => import('./commands/assemble.ts'),
  },
  {
    name: 'status',
    summary: 'is the data safe, what is wrong, what to do now',
    group: arrays,
    load: () => import('./commands/status.ts'),
  },
  {
    name: 'grow',
    summary: 'use more of each disk, or add legs to a mirror',
    group: arrays,
    load: () => import('./commands/grow.ts'),
  },
  {
    name: 'list',
    summary: 'the arrays below a folder',
    group: arrays,
    load: () => import('./commands/list.ts'),
  },
  {
    name: 'examine',
    summary: "one disk's metadata, as mdadm --examine tells it",
    group: arrays,
    load: () => import('./commands/examine.ts'),
  },
  {
    name: 'fail',
    summary: 'take disks out of use, as if they had died',
    group: disks,
    load: () => import('./commands/fail.ts'),
  },
  {
    name: 'remove',
    summary: 'let go of disks that are faulty, missing or spare',
    group: disks,
    load: () => import('./commands/remove.ts'),
  },
  {
    name: 'add',
    summary: 'add disks: they take over empty slots, or wait as spares',
    group: disks,
    load: () => import('./commands/add.ts'),
  },
  {
    name: 're-add',
    summary: 'bring back former disks, with only what they have missed',
    group: disks,
    load: () => import('./commands/re-add.ts'),
  },
  {
    name: 'replace',
    summary: 'copy a disk that still works, and let the copy take over',
    group: disks,
    load: () => import('./commands/replace.ts'),
  },
  {
    name: 'rebuild',
    summary: 'bring redundancy back, and watch it come',
    group: disks,
    load: () => import('./commands/rebuild.ts'),
  },
  {
    name: 'scrub',
    summary: 'compare redundancy with the data, and repair it',
    group: disks,
    load: () => import('./commands/scrub.ts'),
  },
  {
    name: 'fault',
    summary: 'break disks of an array that is served, on cue',
    group: disks,
    load: () => import('./commands/fault.ts'),
  },
  {
    name: 'path',
    summary: 'several paths to every disk: list, fail, slow down, lint',
    group: disks,
    load: () => import('./commands/path.ts'),
  },
  {
    name: 'write',
    summary: 'put bytes into an array, from a file or a pipe',
    group: bytes,
    load: () => import('./commands/write.ts'),
  },
  {
    name: 'read',
    summary: 'get bytes out of an array, to a file or a pipe',
    group: bytes,
    load: () => import('./commands/read.ts'),
  },
  {
    name: 'serve',
    summary: 'export an array over NBD, to be mounted and worked on',
    group: bytes,
    load: () => import('./commands/serve.ts'),
  },
  {
    name: 'explain',
    summary: 'what a read or write does step by step, and where chunks live',
    group: bytes,
    load: () => import('./commands/explain.ts'),
  },
  {
    name: 'simulate',
    summary: 'arrays on simulated disks: faults and power cuts by seed',
    group: observe,
    load: () => import('./commands/simulate.ts'),
  },
  {
    name: 'snapshot',
    summary: 'an array as it was at an instant: create, read, roll back',
    group: backups,
    load: () => import('./commands/snapshot.ts'),
  },
  {
    name: 'backup',
    summary: 'what survives the array: create, list, restore, verify',
    group: backups,
    load: () => import('./commands/backup.ts'),
  },
  {
    name: 'export',
    summary: 'an array or a backup as a raw or qcow2 image',
    group: backups,
    load: () => import('./commands/export.ts'),
  },
  {
    name: 'bench',
    summary: 'compare RAID levels, each with its bound measured beside it',
    group: observe,
    load: () => import('./commands/bench.ts'),
  },
  {
    name: 'kernels',
    summary: 'which parity kernels there are, which runs, and how fast',
    group: observe,
    load: () => import('./commands/kernels.ts'),
  },
  {
    name: 'completion',
    summary: 'completion for bash, zsh or fish',
    group: observe,
    load: () => import('./commands/completion.ts'),
  },
];
