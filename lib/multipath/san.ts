/**
 * The SAN of one array: each member is a LUN behind the fabric, and what the array gets is a multipath device over all the
 * paths to it. The plan of it is plain data (`fabric` in raidsim.json); multipath.conf says how paths are used.
 */
import type { Device } from '../device/device.ts';
import { RaidError } from '../errors.ts';
import type { Host } from '../host.ts';
import { type Conf, type Settings, settingsFor } from './conf.ts';
import { MultipathDevice, type Path, type PathState } from './device.ts';
import {
  type ComponentStatus,
  type Condition,
  complaintAboutCondition,
  Fabric,
  type FabricLun,
  type LinkState,
  soundCondition,
} from './fabric.ts';
import type { LatencySummary } from './latency.ts';
import type { AluaState } from './select.ts';
import { complaintAboutTopology, defaultTopology, pathsTo, type Topology } from './topology.ts';

export interface FabricPlan extends Omit<Topology, 'luns'> {
  /** By the names of members; one that is not named is reached by all controllers, which are preferred by turns. */
  readonly luns?: Topology['luns'];
  /** How long controllers take from one ALUA state to another. */
  readonly transitionMs?: number;
  /** Of components that are not sound, by name. */
  readonly conditions?: Readonly<Record<string, Partial<Condition>>>;
}

export function defaultPlan(hbaCount: number, controllerCount: number): FabricPlan {
  for (const count of [hbaCount, controllerCount]) {
    if (!Number.isSafeInteger(count) || count < 1 || count > 64)
      throw new RaidError(
        'BAD_ARGUMENT',
        `a fabric of ${hbaCount} HBAs and ${controllerCount} controllers: each is from 1 to 64`,
      );
  }
  const { luns: _none, ...plan } = defaultTopology(hbaCount, controllerCount, 'lun');
  return plan;
}

/** The LUN of the member with this name, which is number so-and-so. */
export function lunOf(plan: FabricPlan, name: string, index: number): FabricLun {
  const given = plan.luns?.find(({ identity }) => identity === name);
  const { controllers } = plan;
  const preferred = controllers[index % controllers.length]?.name;
  return (
    given ??
    (controllers.length < 2 || preferred === undefined ? { identity: name } : { identity: name, preferred })
  );
}

/** With these members for its LUNs. */
export function topologyOf(plan: FabricPlan, members: readonly string[]): Topology {
  const { hbas, switches, controllers, cables } = plan;
  return {
    hbas,
    switches,
    controllers,
    cables,
    luns: members.map((name, index) => lunOf(plan, name, index)),
  };
}

/** Where and why a plan, which may come from a file, makes no sense; or null. */
export function complaintAboutPlan(value: unknown, members: readonly string[]): PlanComplaint | null {
  const shape = shapeComplaint(value);
  if (shape !== null) return shape;
  const plan = value as FabricPlan;
  for (const [name, change] of Object.entries(plan.conditions ?? {})) {
    const text = complaintAboutCondition({ ...change });
    if (text !== null) return { at: ['conditions', name], text };
  }
  const stray = plan.luns?.findIndex(({ identity }) => !members.includes(identity)) ?? -1;
  if (stray >= 0)
    return {
      at: ['luns', stray],
      text: `there is no member ${plan.luns?.[stray]?.identity}; there are ${members.join(', ')}`,
    };
  // With the LUNs as they are written, so that a place in the complaint is one in the file.
  const text = complaintAboutTopology({ ...plan, luns: plan.luns ?? [] });
  if (text !== null && text !== 'there is no LUN') return { at: placeIn(text), text };
  const whole = complaintAboutTopology(topologyOf(plan, members));
  return whole === null || members.length === 0 ? null : { at: [], text: whole };
}

export interface PlanComplaint {
  /** Keys and indices that lead there from the plan. */
  readonly at: readonly (string | number)[];
  readonly text: string;
}

function placeIn(text: string): readonly (string | number)[] {
  const [, list, index] = /^(cables|luns)\[(\d+)\]/.exec(text) ?? [];
  return list === undefined ? [] : [list, Number(index)];
}

function shapeComplaint(value: unknown): PlanComplaint | null {
  const isObject = (each: unknown): each is Readonly<Record<string, unknown>> =>
    typeof each === 'object' && each !== null && !Array.isArray(each);
  const isName = (each: unknown): boolean => typeof each === 'string' && /^[^\s:]{1,64}$/.test(each);
  if (!isObject(value)) return { at: [], text: 'a fabric is an object' };
  const known = ['hbas', 'switches', 'controllers', 'cables', 'luns', 'transitionMs', 'conditions'];
  const unknown = Object.keys(value).find((name) => !known.includes(name));
  if (unknown !== undefined) return { at: [unknown], text: `a fabric has no "${unknown}"` };
  const { transitionMs = 0, conditions = {}, luns = [] } = value;
  const lists: readonly (readonly [string, unknown, (each: unknown) => boolean, string])[] = [
    ['hbas', value['hbas'], isName, 'a name without blanks and colons'],
    ['switches', value['switches'], isName, 'a name without blanks and colons'],
    [
      'controllers',
      value['controllers'],
      (each) =>
        isObject(each) && isName(each['name']) && Array.isArray(each['ports']) && each['ports'].every(isName),
      '{ "name", "ports": […] }',
    ],
    [
      'cables',
      value['cables'],
      (each) => Array.isArray(each) && each.length === 2 && each.every(isName),
      'a list of two names',
    ],
    [
      'luns',
      luns,
      (each) => isObject(each) && isLun(each),
      '{ "identity", "controllers"?, "preferred"?, "secondary"? }',
    ],
  ];
  for (const [name, list, isRight, wanted] of lists) {
    if (!Array.isArray(list)) return { at: list === undefined ? [] : [name], text: `${name} must be a list` };
    const wrong = list.findIndex((each) => !isRight(each));
    if (wrong >= 0) return { at: [name, wrong], text: `${name}[${wrong}] is not ${wanted}` };
  }
  if (!(typeof transitionMs === 'number' && transitionMs >= 0 && transitionMs <= 3_600_000))
    return { at: ['transitionMs'], text: 'transitionMs is no time up to an hour' };
  if (!isObject(conditions)) return { at: ['conditions'], text: 'conditions must be an object' };
  const odd = Object.entries(conditions).find(([, each]) => !isObject(each));
  return odd === undefined
    ? null
    : { at: ['conditions', odd[0]], text: `conditions: ${odd[0]} must be an object` };
}

function isLun(value: Readonly<Record<string, unknown>>): boolean {
  const { identity, controllers = [], preferred = '', secondary = 'standby', ...others } = value;
  return (
    typeof identity === 'string' &&
    Array.isArray(controllers) &&
    controllers.every((each) => typeof each === 'string') &&
    typeof preferred === 'string' &&
    (secondary === 'standby' || secondary === 'active/non-optimized') &&
    Object.keys(others).length === 0
  );
}

/** As multipath.conf(5) applies to a member. */
export function settingsOf(conf: Conf, lun: FabricLun): Settings {
  return settingsFor(conf, {
    wwid: lun.identity,
    vendor: 'raidsim',
    product: 'disk',
    protocol: 'scsi:fcp',
    alua: lun.preferred !== undefined,
  });
}

export interface SanPath {
  readonly name: string;
  readonly hbtl: string;
  readonly hba: string;
  readonly controller: string;
  readonly port: string;
  readonly state: PathState;
  readonly link: LinkState;
  readonly prio: number;
  readonly why: string | null;
  readonly inFlight: number;
  readonly requests: number;
  /** Of all requests to this LUN, from 0 to 1. */
  readonly share: number;
  readonly errors: number;
  readonly failures: number;
  readonly latencyMs: LatencySummary | null;
}

export interface SanLun {
  readonly name: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** No path to it worked when it was opened: the array does without it. */
  readonly isGone: boolean;
  readonly alua: Readonly<Record<string, AluaState>>;
  readonly selector: string;
  readonly isQueueing: boolean;
  /** Requests that wait for a path. */
  readonly queued: number;
  readonly groups: readonly {
    readonly isActive: boolean;
    readonly prio: number;
    readonly paths: readonly SanPath[];
  }[];
}

export interface SanStatus {
  readonly luns: readonly SanLun[];
  readonly components: readonly ComponentStatus[];
  /** Requests that came to a LUN after their path was fenced. */
  readonly refusedLate: number;
}

interface Member {
  readonly lun: FabricLun;
  readonly settings: Settings;
  readonly paths: readonly Path[];
  readonly backing: Device;
  /** null where no path to it works. */
  device: MultipathDevice | null;
}

export class San {
  readonly plan: FabricPlan;
  readonly #fabric: Fabric;
  readonly #conf: Conf;
  readonly #host: Host;
  readonly #members = new Map<string, Member>();

  /** Throws for a plan that makes no sense. */
  constructor(plan: FabricPlan, options: { readonly host: Host; readonly conf: Conf }) {
    const complaint = complaintAboutPlan(plan, plan.luns?.map(({ identity }) => identity) ?? []);
    if (complaint !== null) throw new RaidError('BAD_MANIFEST', `fabric: ${complaint.text}`);
    const { host, conf } = options;
    this.plan = plan;
    this.#host = host;
    this.#conf = conf;
    this.#fabric = new Fabric(plan, { host, transitionMs: plan.transitionMs ?? 0 });
    this.#fabric.expect(plan.conditions ?? {});
  }

  /**
   * The member as it is seen through the fabric; closing that closes the member. MEMBER_GONE where no path to it works: then
   * the member stays its giver's.
   */
  async attach(name: string, index: number, backing: Device): Promise<Device> {
    const before = this.#members.get(name);
    if (before !== undefined) {
      if (before.device !== null) throw new RaidError('BAD_ARGUMENT', `${name} is behind the fabric already`);
      this.#fabric.detach(name);
    }
    const lun = lunOf(this.plan, name, index);
    const settings = settingsOf(this.#conf, lun);
    const paths = this.#fabric.attach(lun, backing, settings);
    const member: Member = { lun, settings, paths, backing, device: null };
    this.#members.set(name, member);
    member.device = await MultipathDevice.open(paths, {
      host: this.#host,
      settings,
      name,
      onClosed: async () => {
        this.#members.delete(name);
        this.#fabric.detach(name);
        if (![...this.#members.values()].some(({ device }) => device !== null)) this.#fabric.close();
        await backing.close();
      },
    });
    return member.device;
  }

  /** And all that was attached. */
  async close(): Promise<void> {
    await Promise.all([...this.#members.values()].map(({ device }) => device?.close()));
    this.#fabric.close();
  }

  /** What lies behind the fabric, of a device that was given out by it. */
  backingOf(device: Device): Device | null {
    return [...this.#members.values()].find((member) => member.device === device)?.backing ?? null;
  }

  /** What lies behind this device has grown: hosts look again. */
  rescan(device: Device): void {
    for (const member of this.#members.values()) if (member.device === device) member.device.rescan();
  }

  /** Of a path or LUN that is not there yet, too. */
  set(name: string, change: Partial<Condition>): void {
    this.#fabric.expect({ [name]: change });
  }

  /** To the group of a path; by the name of a controller to it, for every member, which makes its paths optimized. */
  async switchTo(name: string): Promise<readonly string[]> {
    const byPath = [...this.#members.values()].find(({ paths }) => paths.some((path) => path.name === name));
    if (byPath !== undefined) {
      if (byPath.device === null) throw noPath(byPath.lun.identity);
      await this.#activate(byPath, name);
      byPath.device.switchGroup(name);
      return [byPath.lun.identity];
    }
    if (!this.plan.controllers.some((controller) => controller.name === name))
      throw new RaidError('BAD_ARGUMENT', `${name} is neither a path nor a controller`);
    const moved: string[] = [];
    for (const { lun, device, paths } of this.#members.values()) {
      const path = paths.find(({ facts }) => facts?.().serial === name);
      if (path === undefined || device === null) continue;
      if (lun.preferred !== undefined) await this.#fabric.setAlua(lun.identity, name, 'active/optimized');
      await device.check();
      device.switchGroup(path.name);
      moved.push(lun.identity);
    }
    return moved;
  }

  /** A group that is standby cannot be used before its controller is told to be active. */
  async #activate({ lun, paths, device }: Member, name: string): Promise<void> {
    const controller = paths.find((path) => path.name === name)?.facts?.().serial ?? '';
    if (this.#fabric.alua(lun.identity)[controller] !== 'standby') return;
    await this.#fabric.setAlua(lun.identity, controller, 'active/optimized');
    await device?.check();
  }

  status(): SanStatus {
    return {
      luns: [...this.#members.values()].map((member) => this.#lunStatus(member)),
      components: this.#fabric.components(),
      refusedLate: this.#fabric.refusedLate,
    };
  }

  #lunStatus({ lun, settings, paths, backing, device }: Member): SanLun {
    const { sizeBytes, readOnly } = backing.limits;
    const known = new Map(paths.map((path) => [path.name, path]));
    const links = new Map(
      pathsTo({ ...this.plan, luns: [lun] }, lun.identity).map((each) => [
        `${each.hba}:${each.port}:${lun.identity}`,
        each,
      ]),
    );
    const status = device?.status() ?? null;
    const groups =
      status?.groups ?? paths.map(({ name }) => ({ isActive: false, paths: [goneStatus(name)] }));
    const total = groups.flatMap((group) => group.paths).reduce((sum, { requests }) => sum + requests, 0);
    return {
      name: lun.identity,
      sizeBytes,
      readOnly,
      isGone: device === null,
      alua: this.#fabric.alua(lun.identity),
      selector: settings.selector,
      isQueueing: settings.noPathRetry.kind !== 'fail',
      queued: status?.queued ?? 0,
      groups: groups.map((group) => ({
        isActive: group.isActive,
        prio: Math.max(0, ...group.paths.map(({ prio }) => prio)),
        paths: group.paths.map((path) => ({
          ...path,
          hbtl: known.get(path.name)?.facts?.().hbtl ?? '',
          hba: links.get(path.name)?.hba ?? '',
          controller: links.get(path.name)?.controller ?? '',
          port: links.get(path.name)?.port ?? '',
          link: this.#fabric.linkState(path.name),
          share: total === 0 ? 0 : path.requests / total,
        })),
      })),
    };
  }
}

function noPath(name: string): RaidError {
  return new RaidError('BAD_ARGUMENT', `${name}: no path to it works; restore one, and bring the disk back`);
}

function goneStatus(name: string) {
  const none = { prio: 0, inFlight: 0, requests: 0, errors: 0, failures: 0, latencyMs: null };
  return { name, state: 'down' as const, why: 'no path worked when the array was opened', ...none };
}

/** The components that a person may mean by a word: one by its name, or a path `hba0:ctl1p0` to every member. */
export function componentsNamed(
  plan: FabricPlan,
  members: readonly string[],
  word: string,
): readonly string[] {
  const all = componentNames(plan, members);
  if (all.includes(word)) return [word];
  const reversed = all.find((name) => name.includes('-') && isCable(plan, name, word));
  if (reversed !== undefined) return [reversed];
  return word.split(':').length === 2 ? all.filter((name) => name.startsWith(`${word}:`)) : [];
}

function isCable(plan: FabricPlan, name: string, word: string): boolean {
  return plan.cables.some(([a, b]) => `${a}-${b}` === name && `${b}-${a}` === word);
}

/** Every name that `path fail` and its like take. */
export function componentNames(plan: FabricPlan, members: readonly string[]): readonly string[] {
  const topology = topologyOf(plan, members);
  return [
    ...plan.hbas,
    ...plan.cables.map(([a, b]) => `${a}-${b}`),
    ...plan.switches,
    ...plan.controllers.flatMap(({ name, ports }) => [...ports, name]),
    ...members,
    ...members.flatMap((member) =>
      pathsTo(topology, member).map(({ hba, port }) => `${hba}:${port}:${member}`),
    ),
  ];
}

/** The plan after such a change; a component that is sound again is left out. */
export function planWith(plan: FabricPlan, name: string, change: Partial<Condition>): FabricPlan {
  const merged = { ...soundCondition, ...plan.conditions?.[name], ...change };
  const wrong = Object.entries(merged).filter(
    ([key, value]) => value !== soundCondition[key as keyof Condition],
  );
  const { [name]: _before, ...others } = plan.conditions ?? {};
  const conditions = wrong.length === 0 ? others : { ...others, [name]: Object.fromEntries(wrong) };
  const { conditions: _all, ...rest } = plan;
  return Object.keys(conditions).length === 0 ? rest : { ...rest, conditions };
}
