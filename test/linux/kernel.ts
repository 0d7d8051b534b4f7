/**
 * The real Linux md, for tests: Debian's user-mode-linux kernel, booted as an ordinary process over image files. No
 * root, nothing installed or changed on the host; a boot takes 2 to 4 s, so tests batch many arrays into one.
 *
 *      host                                       guest
 *      images  ─────────────────────────────────► /dev/ubda, /dev/ubdb, ...   $D0, $D1, ...
 *      /       ── hostfs, read-only ────────────► /
 *      a temporary directory ── hostfs ─────────► /run/lab: script in; out, err, status back
 *
 * The script runs as root with mdadm, and md's modules loaded. It may call
 *      power-cut       the machine is gone at this moment: the process is killed, nothing is flushed or stopped
 *      settle [MD...]  by device or name; waits until no resync, recovery or reshape runs or is about to
 * When the script returns, what still runs is shut down as at a power-off: md marks its arrays clean.
 *
 * md's own defaults hold: arrays start read-write (Debian's start_ro=1 is not read), and resync is not throttled.
 */
import { spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface KernelRun {
  readonly script: string;
  /** At most 16; their sizes are multiples of 512. */
  readonly images?: readonly string[];
  /** Of the kernel, besides md's; what they need comes with them. */
  readonly modules?: readonly string[];
  readonly timeoutMs?: number;
}

export interface KernelResult {
  /** `died`: the kernel ended by itself before the script did. */
  readonly ended: 'returned' | 'power-cut' | 'timeout' | 'died';
  /** Of the script; null unless it returned. */
  readonly exitStatus: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** The kernel's log. */
  readonly log: string;
}

export type KernelAvailability =
  | { readonly available: true }
  | { readonly available: false; readonly because: string };

const MODULES = ['crc32c_generic', 'md-mod', 'linear', 'raid0', 'raid1', 'raid10', 'raid456'];
const IMAGES_MAX = 16;
const modulesBase = '/usr/lib/uml/modules';

/** Whether the programs are here, and if not, what to install. */
export function kernelAvailable(): KernelAvailability {
  const missing = ['linux.uml', 'modprobe', 'mdadm', 'mount', 'setsid'].filter(
    (name) => programPath(name) === null,
  );
  if (missing.length > 0) {
    return {
      available: false,
      because: `${missing.join(', ')} not found: apt-get install user-mode-linux kmod mdadm`,
    };
  }
  return !existsSync(modulesBase)
    ? { available: false, because: `the modules of user-mode-linux are not in ${modulesBase}` }
    : { available: true };
}

/**
 * For the head of a test file: true when the kernel can be asked. On a developer's machine without it the tests are
 * skipped, and say so; in CI they must not be, so there it throws.
 */
export function kernelOrSkip(): boolean {
  const state = kernelAvailable();
  if (state.available) return true;
  if (process.env['CI'] === 'true') throw new Error(`tests against the kernel cannot run: ${state.because}`);
  console.warn(`SKIPPED, tests against the real kernel: ${state.because}`);
  return false;
}

/** Boots, runs the script, and returns what it said. */
export async function runInKernel(run: KernelRun): Promise<KernelResult> {
  const images = run.images ?? [];
  if (images.length > IMAGES_MAX) throw new Error(`a guest has at most ${IMAGES_MAX} disks`);
  const lab = mkdtempSync(join(tmpdir(), 'raidsim-kernel-'));
  try {
    writeFileSync(join(lab, 'script'), run.script);
    writeFileSync(join(lab, 'init'), initScript(lab, images.length, run.modules ?? []), { mode: 0o755 });
    mkdirSync(join(lab, 'bin'));
    for (const [name, text] of Object.entries(HELPERS))
      writeFileSync(join(lab, 'bin', name), text, { mode: 0o755 });
    // Where modprobe looks, below a root of its own.
    mkdirSync(join(lab, 'lib'));
    symlinkSync(modulesBase, join(lab, 'lib', 'modules'));
    return await boot(lab, images, run.timeoutMs ?? 120_000);
  } finally {
    rmSync(lab, { recursive: true, force: true });
  }
}

/** As `runInKernel`, and throws with everything it said unless the script returned 0 (or cut the power). */
export async function inKernel(run: KernelRun): Promise<string> {
  const result = await runInKernel(run);
  if (result.ended === 'power-cut' || (result.ended === 'returned' && result.exitStatus === 0))
    return result.stdout;
  const tail = result.log.split('\n').slice(-30).join('\n');
  throw new Error(
    `${result.ended} with status ${result.exitStatus}\n--- out\n${result.stdout}\n--- err\n${result.stderr}\n--- kernel\n${tail}`,
  );
}

async function boot(lab: string, images: readonly string[], timeoutMs: number): Promise<KernelResult> {
  // The letter d after the number: the image is a plain one, never look for a copy-on-write header in it.
  const disks = images.map((image, index) => `ubd${index}d=${image}`);
  // The guest's memory is a file, unlinked at once; on disk it would be written out.
  const memory = existsSync('/dev/shm') ? '/dev/shm' : lab;
  const child = spawn(
    programPath('linux.uml') as string,
    [
      ...['mem=256M', 'root=/dev/root', 'rootfstype=hostfs', 'rootflags=/', 'ro', `init=${lab}/init`],
      ...[`uml_dir=${lab}`, 'umid=guest', 'noreboot', 'panic=-1'],
      ...['con=null', 'ssl=null', 'con0=null,fd:1', ...disks],
    ],
    { detached: true, stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, HOME: lab, TMPDIR: memory } },
  );
  // The whole group: a guest is several processes, and one that lives on would go on writing to the images.
  const kill = (): void => {
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
  };
  process.once('exit', kill);
  let log = '';
  child.stdout.on('data', (data: Buffer) => {
    log += data.toString('latin1');
  });
  child.stderr.resume();

  const file = (name: string): string => join(lab, name);
  const text = (name: string): string => (existsSync(file(name)) ? readFileSync(file(name), 'utf8') : '');
  const ended = await new Promise<KernelResult['ended']>((resolve) => {
    const end = (how: KernelResult['ended']): void => {
      clearInterval(poll);
      clearTimeout(limit);
      resolve(how);
    };
    const poll = setInterval(() => {
      if (existsSync(file('power-cut'))) end('power-cut');
    }, 20);
    const limit = setTimeout(() => end('timeout'), timeoutMs);
    child.once('exit', () => end(existsSync(file('status')) ? 'returned' : 'died'));
    child.once('error', () => end('died'));
  });
  if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) {
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    kill();
    await gone;
  }
  process.off('exit', kill);
  const exitStatus = ended === 'returned' ? Number(text('status')) : null;
  return { ended, exitStatus, stdout: text('out'), stderr: text('err'), log };
}

/** What scripts can call, as files: here a file costs nothing, and in the guest each process a fiftieth of a second. */
const HELPERS = {
  'power-cut': `#!/bin/sh
sync -f /run/lab
: >/run/lab/power-cut
while :; do sleep 1; done
`,
  settle: `#!/bin/sh
calm=0
while [ $calm -lt 2 ]; do
  busy=
  for action in /sys/block/md*/md/sync_action; do
    [ -e "$action" ] || continue
    md=\${action#/sys/block/}; md=\${md%%/*}
    if [ $# -gt 0 ]; then case " $* " in *"/$md "*|*" $md "*) ;; *) continue;; esac; fi
    read -r now <"$action"; case $now in idle|frozen) ;; *) busy=1;; esac
  done
  if [ -n "$busy" ]; then calm=0; sleep 0.1; else calm=$((calm+1)); sleep 0.25; fi
done
`,
};

function initScript(lab: string, diskCount: number, more: readonly string[]): string {
  const disks = Array.from({ length: diskCount }, (_, index) => `/dev/ubd${String.fromCharCode(97 + index)}`);
  return `#!/bin/sh
export PATH=/run/lab/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TZ=UTC HOME=/root TERM=dumb
mount -n -t proc proc /proc
mount -n -t sysfs sysfs /sys
mount -n -t devtmpfs devtmpfs /dev
mount -n -t tmpfs tmpfs /run
mount -n -t tmpfs tmpfs /tmp
mkdir -p /run/lab /run/lock /run/mdadm
mount -n -t hostfs -o "${lab}" none /run/lab
[ -d /etc/mdadm ] && mount -n -t tmpfs tmpfs /etc/mdadm && : >/etc/mdadm/mdadm.conf
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
echo lab >/proc/sys/kernel/hostname
modprobe -d /run/lab -a ${[...MODULES, ...more].join(' ')} 2>/dev/kmsg
for limit in min max; do echo 1000000 >/proc/sys/dev/raid/speed_limit_$limit; done
DISKS="${disks.join(' ')}"
${disks.map((disk, index) => `D${index}=${disk}`).join('\n')}
export DISKS ${disks.map((_, index) => `D${index}`).join(' ')}
cd /tmp
sh /run/lab/script </dev/null >/run/lab/out 2>/run/lab/err
echo $? >/run/lab/status
sync
echo o >/proc/sysrq-trigger
sleep 20
`;
}

export function programPath(name: string): string | null {
  const directories = [...(process.env['PATH'] ?? '').split(':'), '/usr/sbin', '/sbin', '/usr/bin', '/bin'];
  return directories.map((directory) => join(directory, name)).find((path) => existsSync(path)) ?? null;
}
