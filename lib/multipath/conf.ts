/**
 * multipath.conf(5), read as multipath-tools reads it, and what its settings mean for one LUN.
 *
 *   text ──readConf──▶ sections + diagnostics ──settingsFor(LUN)──▶ Settings
 *
 * A setting comes from the strongest place that has it; within one, the later entry wins:
 *
 *   multipaths (wwid, exactly)  >  overrides/protocol  >  overrides  >  devices (vendor, product: expressions)
 *                               >  defaults  >  what is built in
 *
 * multipathd warns of a value that it cannot use and goes on with the default. Here that is an error: who rehearses a
 * failure must not rehearse another configuration than the one in the file. A keyword that nobody knows, and one that
 * has no meaning here (the blacklist, aliases, udev), is named and left out, since real files are full of them.
 *
 * Times are seconds in the file and milliseconds in `Settings`.
 */
import { RaidError } from '../errors.ts';

export const groupingPolicies = [
  'failover',
  'multibus',
  'group_by_prio',
  'group_by_serial',
  'group_by_node_name',
] as const;
export type GroupingPolicy = (typeof groupingPolicies)[number];

export const selectorNames = [
  'round-robin',
  'queue-length',
  'service-time',
  'historical-service-time',
  'hash',
] as const;
export type SelectorName = (typeof selectorNames)[number];

export const checkerNames = ['directio', 'tur', 'readsector0', 'none'] as const;
export type CheckerName = (typeof checkerNames)[number];

export type Prio =
  | { readonly kind: 'const' }
  | { readonly kind: 'random' }
  | { readonly kind: 'alua'; readonly exclusivePrefBit: boolean }
  | {
      readonly kind: 'weightedpath';
      readonly by: 'hbtl' | 'devname' | 'serial' | 'wwn';
      readonly weights: readonly { readonly pattern: RegExp; readonly prio: number }[];
    }
  | { readonly kind: 'path_latency'; readonly ioCount: number; readonly base: number };

export type Failback =
  | { readonly kind: 'immediate' | 'manual' | 'followover' }
  | { readonly kind: 'deferred'; readonly afterMs: number };

export type NoPathRetry =
  | { readonly kind: 'fail' | 'queue' }
  | { readonly kind: 'retries'; readonly count: number };

/** A path that keeps failing is kept out: by failures that are forgotten one by one … */
export interface SanPathErr {
  readonly threshold: number;
  /** One failure is forgotten every so many checks. */
  readonly forgetChecks: number;
  readonly recoveryMs: number;
}

/** … or by two failures in quick succession, after which it is read ten times a second for a while. */
export interface MarginalPath {
  readonly doubleFailedMs: number;
  readonly sampleMs: number;
  /** In a thousand. */
  readonly errorsPermille: number;
  readonly recheckGapMs: number;
}

export interface Settings {
  readonly groupingPolicy: GroupingPolicy;
  readonly selector: SelectorName;
  readonly prio: Prio;
  readonly checker: CheckerName;
  readonly failback: Failback;
  readonly noPathRetry: NoPathRetry;
  /** Requests to one path before the next one's turn: `rr_min_io` with `queue_mode bio`, else `rr_min_io_rq`. */
  readonly rrMinIo: number;
  readonly rrWeight: 'uniform' | 'priorities';
  readonly pollingMs: number;
  readonly maxPollingMs: number;
  readonly checkerTimeoutMs: number;
  /** These two are for the transport below a path; a `MultipathDevice` has none of its own. null: off. */
  readonly fastIoFailMs: number | null;
  /** Infinity for `infinity`; null: whatever the hardware does. */
  readonly devLossMs: number | null;
  readonly sanPathErr: SanPathErr | null;
  readonly marginalPath: MarginalPath | null;
  /** Marginal paths are a group of their own, tried last, and not kept out altogether. */
  readonly marginalGroups: boolean;
}

export interface Place {
  readonly line: number;
  /** Both count from 1; a tab is one column. */
  readonly column: number;
}

export interface Diagnostic extends Place {
  /** `error`: the file is refused. `unknown`: nobody knows the keyword. `ignored`: it has no effect here. */
  readonly kind: 'error' | 'unknown' | 'ignored';
  readonly message: string;
}

export interface Conf {
  readonly defaults: Section;
  readonly devices: readonly DeviceSection[];
  readonly multipaths: readonly MultipathSection[];
  readonly overrides: Section;
  readonly protocols: readonly ProtocolSection[];
}

/** Keyword → what it was set to last. */
export type Section = ReadonlyMap<string, Setting>;

interface Setting extends Place {
  readonly text: string;
}

interface DeviceSection {
  readonly vendor: RegExp;
  readonly product: RegExp;
  readonly revision: RegExp | null;
  readonly settings: Section;
}

interface MultipathSection {
  readonly wwid: string;
  readonly settings: Section;
}

interface ProtocolSection {
  readonly type: string;
  readonly settings: Section;
}

/** What decides which sections hold for a LUN. */
export interface LunFacts {
  readonly wwid: string;
  readonly vendor?: string;
  readonly product?: string;
  readonly revision?: string;
  /** As multipath says it: `scsi:fcp`, `nvme:tcp`. */
  readonly protocol?: string;
  /** Its controllers have ALUA states: `detect_prio` and `detect_pgpolicy` find that out. */
  readonly alua?: boolean;
}

// ── Keywords ─────────────────────────────────────────────────────────────────────────────────────────────────────────

type Where = 'defaults' | 'device' | 'multipath' | 'overrides' | 'protocol';

interface Keyword {
  readonly in: readonly Where[];
  /** What is wrong with a value, or null. */
  readonly complaint: (text: string) => string | null;
  /** Known to multipath-tools, without a meaning here. */
  readonly ignored?: true;
}

const everywhere: readonly Where[] = ['defaults', 'device', 'multipath', 'overrides'];
const notMultipath: readonly Where[] = ['defaults', 'device', 'overrides'];
const onlyDefaults: readonly Where[] = ['defaults'];

function oneOf(...words: readonly string[]): Keyword['complaint'] {
  return (text) => (words.includes(text) ? null : `is none of ${words.join(', ')}`);
}

function whole(from: number, to: number, ...words: readonly string[]): Keyword['complaint'] {
  const orWords = words.length === 0 ? '' : `, nor ${words.join(' or ')}`;
  return (text) => {
    if (words.includes(text)) return null;
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    return value >= from && value <= to ? null : `is no whole number from ${from} to ${to}${orWords}`;
  };
}

const MOST = 2 ** 31 - 1;
const yesNo = oneOf('yes', 'no', 'on', 'off', '1', '0');
const orNo = whole(1, MOST, 'no', '0');

function selectorComplaint(text: string): string | null {
  const [name = '', ...args] = text.split(/\s+/);
  if (!(selectorNames as readonly string[]).includes(name)) {
    return `is none of ${selectorNames.map((each) => `"${each} 0"`).join(', ')}`;
  }
  return args.join(' ') === '0'
    ? null
    : `should be "${name} 0": the number of arguments follows, and there are none`;
}

const queueModes = ['bio', 'rq', 'mq'];

/** `num list`; what is in the list takes up `num` words. */
function featuresOf(text: string): { readonly queue: boolean; readonly mode: string } | string {
  const [count = '', ...words] = text.trim().split(/\s+/);
  if (Number(count) !== words.length || !/^\d+$/.test(count)) {
    return `should begin with the number of words that follow, which is ${words.length}`;
  }
  let queue = false;
  let mode = 'mq';
  for (let at = 0; at < words.length; at += 1) {
    const word = words[at];
    if (word === 'queue_if_no_path') {
      queue = true;
    } else if (word === 'queue_mode' && queueModes.includes(words[at + 1] ?? '')) {
      at += 1;
      mode = words[at] ?? mode;
    } else if (
      (word === 'pg_init_retries' || word === 'pg_init_delay_msecs') &&
      /^\d+$/.test(words[at + 1] ?? '')
    ) {
      at += 1;
    } else {
      return `has "${word}", which is no feature, or one whose value is missing`;
    }
  }
  return { queue, mode };
}

const keywords: Readonly<Record<string, Keyword>> = {
  path_grouping_policy: { in: everywhere, complaint: oneOf(...groupingPolicies) },
  path_selector: { in: everywhere, complaint: selectorComplaint },
  prio: {
    in: everywhere,
    complaint: oneOf('const', 'alua', 'sysfs', 'random', 'weightedpath', 'path_latency', 'none'),
  },
  prio_args: { in: everywhere, complaint: () => null },
  features: {
    in: everywhere,
    complaint: (text) => {
      const features = featuresOf(text);
      return typeof features === 'string' ? features : null;
    },
  },
  path_checker: { in: notMultipath, complaint: oneOf(...checkerNames) },
  failback: { in: everywhere, complaint: whole(1, MOST, 'immediate', 'manual', 'followover') },
  no_path_retry: { in: everywhere, complaint: whole(0, MOST, 'fail', 'queue') },
  rr_min_io: { in: everywhere, complaint: whole(1, MOST) },
  rr_min_io_rq: { in: everywhere, complaint: whole(1, MOST) },
  rr_weight: { in: everywhere, complaint: oneOf('uniform', 'priorities') },
  polling_interval: { in: onlyDefaults, complaint: whole(1, MOST) },
  max_polling_interval: { in: onlyDefaults, complaint: whole(1, MOST) },
  checker_timeout: { in: onlyDefaults, complaint: whole(1, MOST) },
  fast_io_fail_tmo: { in: [...notMultipath, 'protocol'], complaint: whole(0, MOST, 'off') },
  dev_loss_tmo: { in: [...notMultipath, 'protocol'], complaint: whole(1, 2 ** 32 - 1, 'infinity') },
  detect_prio: { in: notMultipath, complaint: yesNo },
  detect_checker: { in: notMultipath, complaint: yesNo },
  detect_pgpolicy: { in: notMultipath, complaint: yesNo },
  san_path_err_threshold: { in: everywhere, complaint: orNo },
  san_path_err_forget_rate: { in: everywhere, complaint: orNo },
  san_path_err_recovery_time: { in: everywhere, complaint: orNo },
  marginal_path_double_failed_time: { in: everywhere, complaint: orNo },
  marginal_path_err_sample_time: { in: everywhere, complaint: whole(120, MOST, 'no', '0') },
  marginal_path_err_rate_threshold: { in: everywhere, complaint: whole(1, 1000, 'no', '0') },
  marginal_path_err_recheck_gap_time: { in: everywhere, complaint: orNo },
  marginal_pathgroups: { in: onlyDefaults, complaint: oneOf('on', 'off', 'yes', 'no') },
  ...withoutMeaning(onlyDefaults, [
    'verbosity reassign_maps multipath_dir pg_timeout uid_attrs getuid_callout max_fds queue_without_daemon',
    'allow_usb_devices bindings_file wwids_file prkeys_file log_checker_err force_sync strict_timing',
    'partition_delimiter config_dir find_multipaths find_multipaths_timeout uxsock_timeout retrigger_tries',
    'retrigger_delay missing_uev_wait_timeout disable_changed_wwids remove_retries enable_foreign',
  ]),
  ...withoutMeaning(everywhere, [
    'flush_on_last_del user_friendly_names reservation_key deferred_remove skip_kpartx max_sectors_kb ghost_delay',
    'delay_watch_checks delay_wait_checks',
  ]),
  ...withoutMeaning(notMultipath, [
    'uid_attribute alias_prefix retain_attached_hw_handler detect_pgpolicy_use_tpg recheck_wwid all_tg_pt',
  ]),
  ...withoutMeaning([...notMultipath, 'protocol'], ['eh_deadline']),
  ...withoutMeaning(notMultipath, ['max_retries hardware_handler']),
  ...withoutMeaning(['device'], ['product_blacklist vpd_vendor']),
  ...withoutMeaning(['multipath'], ['alias']),
};

function withoutMeaning(where: readonly Where[], lists: readonly string[]): Record<string, Keyword> {
  const names = lists.join(' ').split(' ');
  return Object.fromEntries(names.map((name) => [name, { in: where, complaint: () => null, ignored: true }]));
}

/** What says to whom a section applies: it belongs to the section and is no setting. */
const matchers: Readonly<
  Partial<Record<Where, { readonly must: readonly string[]; readonly may: readonly string[] }>>
> = {
  device: { must: ['vendor', 'product'], may: ['revision'] },
  multipath: { must: ['wwid'], may: [] },
  protocol: { must: ['type'], may: [] },
};

// ── Lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────

interface Token extends Place {
  readonly text: string;
  readonly isQuoted: boolean;
}

/**
 * The words of a line. Outside quotes `#` and `!` begin a comment; inside, two quotes are one. Throws a Diagnostic for
 * a quote that does not end.
 */
function tokensOf(content: string, line: number): Token[] {
  const tokens: Token[] = [];
  let at = 0;
  while (at < content.length) {
    const char = content[at] as string;
    const column = at + 1;
    if (/\s/.test(char)) {
      at += 1;
    } else if (char === '#' || char === '!') {
      break;
    } else if (char === '{' || char === '}') {
      tokens.push({ text: char, isQuoted: false, line, column });
      at += 1;
    } else if (char === '"') {
      let text = '';
      for (at += 1; ; at += 1) {
        if (at >= content.length) throw complain({ line, column }, 'the quote that begins here does not end');
        if (content[at] !== '"') text += content[at];
        else if (content[at + 1] === '"') {
          text += '"';
          at += 1;
        } else break;
      }
      at += 1;
      tokens.push({ text, isQuoted: true, line, column });
    } else {
      const start = at;
      while (at < content.length && !/[\s"#!]/.test(content[at] as string)) {
        // A brace is a token of its own at the end of a word only: `{2}` in an expression is not.
        if (content[at] === '{' && /^\s*([#!].*)?$/.test(content.slice(at + 1))) break;
        at += 1;
      }
      tokens.push({ text: content.slice(start, at), isQuoted: false, line, column });
    }
  }
  return tokens;
}

function complain(place: Place, message: string): Diagnostic {
  return { kind: 'error', line: place.line, column: place.column, message };
}

function isDiagnostic(thrown: unknown): thrown is Diagnostic {
  return typeof thrown === 'object' && thrown !== null && 'kind' in thrown && 'column' in thrown;
}

/** A section that is open: where it began, and what is in it so far. */
interface Open extends Place {
  readonly name: string;
  readonly where: Where | 'list' | 'skipped';
  readonly settings: Map<string, Setting>;
  readonly matchers: Map<string, Setting>;
}

/** Which section may begin inside which; '' is the file. */
const nesting: Readonly<Record<string, Readonly<Record<string, Open['where']>>>> = {
  '': {
    defaults: 'defaults',
    blacklist: 'skipped',
    blacklist_exceptions: 'skipped',
    devices: 'list',
    multipaths: 'list',
    overrides: 'overrides',
  },
  devices: { device: 'device' },
  multipaths: { multipath: 'multipath' },
  overrides: { protocol: 'protocol' },
  blacklist: { device: 'skipped', protocol: 'skipped' },
  blacklist_exceptions: { device: 'skipped', protocol: 'skipped' },
};

/** All that a file says, and all that is wrong with it. Never throws; without an error among them, `conf` holds. */
export function readConf(text: string): { readonly conf: Conf; readonly diagnostics: readonly Diagnostic[] } {
  const diagnostics: Diagnostic[] = [];
  const defaults = new Map<string, Setting>();
  const overrides = new Map<string, Setting>();
  const devices: DeviceSection[] = [];
  const multipaths: MultipathSection[] = [];
  const protocols: ProtocolSection[] = [];
  const stack: Open[] = [];

  const begin = (name: Token): void => {
    const around = stack.at(-1);
    const where = own(own(nesting, around?.name ?? '') ?? {}, name.text);
    if (where === undefined) {
      const inside = around === undefined ? 'a file' : `"${around.name}"`;
      diagnostics.push({
        ...placeOf(name),
        kind: 'unknown',
        message: `${inside} has no section "${name.text}"; all of it is left out`,
      });
    } else if (where === 'skipped' && stack.length === 0) {
      diagnostics.push({
        ...placeOf(name),
        kind: 'ignored',
        message: `"${name.text}" says which devices are no paths; here paths are named, and it is left out`,
      });
    }
    const settings = where === 'defaults' ? defaults : where === 'overrides' ? overrides : new Map();
    stack.push({
      ...placeOf(name),
      name: name.text,
      where: where ?? 'skipped',
      settings,
      matchers: new Map(),
    });
  };

  const end = (section: Open): void => {
    const { where, settings } = section;
    if (where !== 'device' && where !== 'multipath' && where !== 'protocol') return;
    const missing = matchers[where]?.must.filter((name) => !section.matchers.has(name)) ?? [];
    if (missing.length > 0) {
      throw complain(section, `a section "${section.name}" must have ${missing.join(' and ')}`);
    }
    const expression = (name: string): RegExp =>
      expressionOf(section.matchers.get(name) as Setting, diagnostics);
    const word = (name: string): string => section.matchers.get(name)?.text ?? '';
    if (where === 'device') {
      const revision = section.matchers.has('revision') ? expression('revision') : null;
      devices.push({ vendor: expression('vendor'), product: expression('product'), revision, settings });
    } else if (where === 'multipath') {
      multipaths.push({ wwid: word('wwid'), settings });
    } else {
      protocols.push({ type: word('type'), settings });
    }
  };

  const set = (name: Token, value: Token): void => {
    const section = stack.at(-1);
    if (section === undefined) throw complain(name, `"${name.text}" stands outside every section`);
    const { where } = section;
    if (where === 'skipped') return;
    const setting: Setting = { ...placeOf(value), text: value.text };
    const matcher = where === 'list' ? undefined : matchers[where];
    if (matcher !== undefined && [...matcher.must, ...matcher.may].includes(name.text)) {
      if (value.text === '') throw complain(value, `${name.text} is empty`);
      section.matchers.set(name.text, setting);
      return;
    }
    const keyword = own(keywords, name.text);
    if (where === 'list' || keyword === undefined || !keyword.in.includes(where)) {
      const message =
        keyword === undefined
          ? `"${name.text}" is no keyword of multipath.conf; it is left out`
          : `"${name.text}" has no place in "${section.name}"; it is left out`;
      diagnostics.push({ ...placeOf(name), kind: 'unknown', message });
      return;
    }
    if (keyword.ignored === true) {
      diagnostics.push({ ...placeOf(name), kind: 'ignored', message: `"${name.text}" has no effect here` });
      return;
    }
    const complaint = keyword.complaint(value.text);
    if (complaint !== null) throw complain(value, `${name.text}: "${value.text}" ${complaint}`);
    const before = section.settings.get(name.text);
    if (before !== undefined) {
      const message = `${name.text} is set again at line ${value.line}, and that one counts`;
      diagnostics.push({ ...placeOf(before), kind: 'ignored', message });
    }
    section.settings.set(name.text, setting);
  };

  const readLine = (tokens: readonly Token[]): void => {
    const [first, second, third] = tokens;
    if (first === undefined) return;
    if (isBrace(first, '}')) {
      const section = stack.pop();
      if (section === undefined) throw complain(first, '"}" ends nothing');
      if (second !== undefined) diagnostics.push(complain(second, 'nothing may follow "}" on its line'));
      end(section);
      return;
    }
    if (isBrace(first, '{')) {
      // What it holds must not be taken for what stands around it.
      begin({ ...first, text: '' });
      throw complain(first, '"{" must follow the name of a section, on the same line');
    }
    if (second === undefined) throw complain(first, `"${first.text}" has no value, and no "{" follows it`);
    if (isBrace(second, '{')) {
      begin(first);
      if (third !== undefined) throw complain(third, 'nothing may follow "{" on its line');
      return;
    }
    if (first.isQuoted) throw complain(first, 'a keyword is not quoted');
    if (third !== undefined) {
      throw complain(
        third,
        `${first.text} takes one value; write several words as "${tokens
          .slice(1)
          .map((token) => token.text)
          .join(' ')}"`,
      );
    }
    set(first, second);
  };

  text.split('\n').forEach((content, index) => {
    try {
      readLine(tokensOf(content.replace(/\r$/, ''), index + 1));
    } catch (thrown) {
      if (!isDiagnostic(thrown)) throw thrown;
      diagnostics.push(thrown);
    }
  });
  for (const section of stack)
    diagnostics.push(complain(section, `"${section.name}" begins here and does not end`));

  const conf: Conf = { defaults, devices, multipaths, overrides, protocols };
  checkTogether(conf, diagnostics);
  diagnostics.sort((a, b) => a.line - b.line || a.column - b.column);
  return { conf, diagnostics };
}

/** A conf without errors; throws for the first one, and says how many there are. `told` hears of all that was left out. */
export function parseConf(
  text: string,
  options: { readonly file?: string; readonly told?: (diagnostic: Diagnostic) => void } = {},
): Conf {
  const { file = 'multipath.conf', told } = options;
  const { conf, diagnostics } = readConf(text);
  const errors = diagnostics.filter(({ kind }) => kind === 'error');
  const [first] = errors;
  if (first !== undefined) {
    const more = errors.length === 1 ? '' : ` (and ${errors.length - 1} more)`;
    throw new RaidError('BAD_ARGUMENT', `${describeDiagnostic(first, file)}${more}`, { device: file });
  }
  for (const diagnostic of diagnostics) told?.(diagnostic);
  return conf;
}

/** `multipath.conf:3:5: …` */
export function describeDiagnostic({ line, column, message }: Diagnostic, file: string): string {
  return `${file}:${line}:${column}: ${message}`;
}

function placeOf({ line, column }: Place): Place {
  return { line, column };
}

function isBrace(token: Token, brace: '{' | '}'): boolean {
  return !token.isQuoted && token.text === brace;
}

/** `constructor` is no keyword, whatever an object inherits. */
function own<T>(table: Readonly<Record<string, T>>, name: string): T | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined;
}

// ── Expressions ──────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * A POSIX extended expression as a JavaScript one. They differ where it matters in three places: classes such as
 * `[[:digit:]]`, a backslash within brackets, which is itself, and a `*` with nothing before it, which is itself, too.
 * A lone `*` is what people write for "any", and multipath-tools takes it as that.
 */
export function posixExpression(text: string): RegExp {
  if (text === '*') return /^/;
  let source = '';
  let at = 0;
  while (at < text.length) {
    const char = text[at] as string;
    if (char === '[') {
      const end = bracketEnd(text, at);
      source += bracketOf(text.slice(at + 1, end));
      at = end + 1;
    } else if (char === '\\') {
      const next = text[at + 1] ?? '';
      source += /\w/.test(next) ? next : `\\${next}`;
      at += 2;
    } else {
      source += char === '*' && (at === 0 || '(|^'.includes(text[at - 1] as string)) ? '\\*' : char;
      at += 1;
    }
  }
  return new RegExp(source);
}

/** A `]` that comes first, or after `[^`, is an ordinary one; so is one inside `[:…:]`. */
function bracketEnd(text: string, start: number): number {
  let at = start + 1;
  if (text[at] === '^') at += 1;
  if (text[at] === ']') at += 1;
  for (; at < text.length; at += 1) {
    if (text[at] === ']') return at;
    if (text[at] === '[' && text[at + 1] === ':') {
      const end = text.indexOf(':]', at + 2);
      if (end > 0) at = end + 1;
    }
  }
  throw new SyntaxError('a bracket does not end');
}

const classes: Readonly<Record<string, string>> = {
  alnum: 'A-Za-z0-9',
  alpha: 'A-Za-z',
  blank: ' \\t',
  digit: '0-9',
  lower: 'a-z',
  punct: '!-\\/:-@\\[-`{-~',
  space: '\\s',
  upper: 'A-Z',
  xdigit: '0-9A-Fa-f',
};

function bracketOf(inner: string): string {
  const negated = inner.startsWith('^');
  const body = (negated ? inner.slice(1) : inner).replace(/\[:(\w+):\]|[\\[\]]/g, (found, name?: string) => {
    if (name === undefined) return `\\${found}`;
    const members = own(classes, name);
    if (members === undefined) throw new SyntaxError(`there is no class [:${name}:]`);
    return members;
  });
  // A `^` that is not first is itself in both.
  return `[${negated ? '^' : ''}${body}]`;
}

function expressionOf(setting: Setting, diagnostics: Diagnostic[]): RegExp {
  try {
    return posixExpression(setting.text);
  } catch (failure) {
    diagnostics.push(complain(setting, `"${setting.text}" is no expression: ${(failure as Error).message}`));
    return /(?!)/;
  }
}

// ── Meaning ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * What holds for one LUN. Throws where sections that are right by themselves do not fit together: which of them meet
 * is known only with the LUN.
 */
export function settingsFor(conf: Conf, lun: LunFacts, file = 'multipath.conf'): Settings {
  const layers = layersFor(conf, lun);
  try {
    const settings = meaningOf(layers, lun);
    const contradiction = contradictionIn(layers, settings);
    if (contradiction !== null) throw contradiction;
    return settings;
  } catch (thrown) {
    if (!isDiagnostic(thrown)) throw thrown;
    throw new RaidError('BAD_ARGUMENT', describeDiagnostic(thrown, file), { device: file });
  }
}

/** From the strongest to the weakest. */
function layersFor(conf: Conf, lun: LunFacts): readonly Section[] {
  const { vendor = '', product = '', revision = '' } = lun;
  const multipaths = conf.multipaths.filter(({ wwid }) => wwid === lun.wwid);
  const protocols = conf.protocols.filter(({ type }) => type === lun.protocol);
  const devices = conf.devices.filter(
    (each) =>
      each.vendor.test(vendor) &&
      each.product.test(product) &&
      (each.revision === null || each.revision.test(revision)),
  );
  const lastFirst = (sections: readonly { readonly settings: Section }[]): Section[] =>
    sections.map(({ settings }) => settings).reverse();
  return [
    ...lastFirst(multipaths),
    ...lastFirst(protocols),
    conf.overrides,
    ...lastFirst(devices),
    conf.defaults,
  ];
}

const emptySetting: Setting = { text: '', line: 1, column: 1 };

function meaningOf(layers: readonly Section[], lun: LunFacts): Settings {
  const found = (name: string): Setting | undefined => layers.find((layer) => layer.has(name))?.get(name);
  const text = (name: string, otherwise: string): string => found(name)?.text ?? otherwise;
  const isOn = (name: string, otherwise: string): boolean =>
    ['yes', 'on', '1'].includes(text(name, otherwise));
  const count = (name: string): number => Number(text(name, '0').replace('no', '0'));

  const features = featuresOf(text('features', '0'));
  const { queue, mode } = typeof features === 'string' ? { queue: false, mode: 'mq' } : features;

  // As in multipath-tools, arguments are those that stand beside the prioritizer, in its own section.
  const chosen = layers.find((layer) => layer.has('prio'));
  const given = chosen?.get('prio')?.text ?? 'const';
  const isDetected = lun.alua === true && isOn('detect_prio', 'yes') && given !== 'alua' && given !== 'sysfs';
  const prio = isDetected ? prioOf('sysfs', undefined) : prioOf(given, chosen?.get('prio_args'));
  if (typeof prio === 'string') {
    throw complain(chosen?.get('prio_args') ?? chosen?.get('prio') ?? emptySetting, prio);
  }
  const byPrio = lun.alua === true && prio.kind === 'alua' && isOn('detect_pgpolicy', 'yes');

  const pollingMs = Number(text('polling_interval', '5')) * 1000;
  const retry = text('no_path_retry', queue ? 'queue' : 'fail');
  const failback = text('failback', 'manual');
  const fastIoFail = text('fast_io_fail_tmo', '5');
  const devLoss = text('dev_loss_tmo', '');
  const marginalPath = marginalPathOf(count);
  return {
    groupingPolicy: byPrio ? 'group_by_prio' : (text('path_grouping_policy', 'failover') as GroupingPolicy),
    selector: text('path_selector', 'service-time 0').split(/\s+/)[0] as SelectorName,
    prio,
    checker:
      lun.alua === true && isOn('detect_checker', 'yes')
        ? 'tur'
        : (text('path_checker', 'tur') as CheckerName),
    failback:
      failback === 'immediate' || failback === 'manual' || failback === 'followover'
        ? { kind: failback }
        : { kind: 'deferred', afterMs: Number(failback) * 1000 },
    noPathRetry:
      retry === 'queue'
        ? { kind: 'queue' }
        : retry === 'fail' || Number(retry) === 0
          ? { kind: 'fail' }
          : { kind: 'retries', count: Number(retry) },
    rrMinIo: mode === 'bio' ? Number(text('rr_min_io', '1000')) : Number(text('rr_min_io_rq', '1')),
    rrWeight: text('rr_weight', 'uniform') as Settings['rrWeight'],
    pollingMs,
    maxPollingMs: Number(text('max_polling_interval', String((4 * pollingMs) / 1000))) * 1000,
    checkerTimeoutMs: Number(text('checker_timeout', '30')) * 1000,
    fastIoFailMs: fastIoFail === 'off' ? null : Number(fastIoFail) * 1000,
    devLossMs:
      devLoss === '' ? null : devLoss === 'infinity' ? Number.POSITIVE_INFINITY : Number(devLoss) * 1000,
    // Of the two, multipathd uses the newer one where both are set.
    sanPathErr: marginalPath === null ? sanPathErrOf(count) : null,
    marginalPath,
    marginalGroups: isOn('marginal_pathgroups', 'off'),
  };
}

/** A method is on when all of its keywords are set. */
function sanPathErrOf(count: (name: string) => number): SanPathErr | null {
  const threshold = count('san_path_err_threshold');
  const forgetChecks = count('san_path_err_forget_rate');
  const recoveryMs = count('san_path_err_recovery_time') * 1000;
  return threshold > 0 && forgetChecks > 0 && recoveryMs > 0 ? { threshold, forgetChecks, recoveryMs } : null;
}

function marginalPathOf(count: (name: string) => number): MarginalPath | null {
  const doubleFailedMs = count('marginal_path_double_failed_time') * 1000;
  const sampleMs = count('marginal_path_err_sample_time') * 1000;
  const errorsPermille = count('marginal_path_err_rate_threshold');
  const recheckGapMs = count('marginal_path_err_recheck_gap_time') * 1000;
  const isSet = doubleFailedMs > 0 && sampleMs > 0 && errorsPermille > 0 && recheckGapMs > 0;
  return isSet ? { doubleFailedMs, sampleMs, errorsPermille, recheckGapMs } : null;
}

/** The prioritizer, or what is wrong with its arguments. */
function prioOf(name: string, args: Setting | undefined): Prio | string {
  const words = (args?.text ?? '')
    .trim()
    .split(/\s+/)
    .filter((word) => word !== '');
  switch (name) {
    case 'alua':
    case 'sysfs':
      return { kind: 'alua', exclusivePrefBit: words.includes('exclusive_pref_bit') };
    case 'random':
      return { kind: 'random' };
    case 'weightedpath':
      return weightedPathOf(words);
    case 'path_latency':
      return pathLatencyOf(words);
    default:
      return { kind: 'const' };
  }
}

const weightedBy = ['hbtl', 'devname', 'serial', 'wwn'] as const;

function weightedPathOf([by, ...pairs]: readonly string[]): Prio | string {
  const kind = weightedBy.find((each) => each === by);
  const form = 'prio weightedpath needs prio_args "hbtl|devname|serial|wwn EXPRESSION PRIO …"';
  if (kind === undefined || pairs.length === 0 || pairs.length % 2 !== 0) return form;
  const weights: { readonly pattern: RegExp; readonly prio: number }[] = [];
  for (let at = 0; at < pairs.length; at += 2) {
    const [expression = '', prio = ''] = pairs.slice(at, at + 2);
    if (!/^\d{1,9}$/.test(prio)) return `${form}; "${prio}" is no priority`;
    try {
      weights.push({ pattern: posixExpression(expression), prio: Number(prio) });
    } catch (failure) {
      return `"${expression}" is no expression: ${(failure as Error).message}`;
    }
  }
  return { kind: 'weightedpath', by: kind, weights };
}

function pathLatencyOf(words: readonly string[]): Prio | string {
  const given = Object.fromEntries(words.map((word) => word.split('=')));
  const ioCount = Number(given['io_num']);
  const base = Number(given['base_num']);
  const holds =
    words.length === 2 &&
    Number.isInteger(ioCount) &&
    ioCount >= 2 &&
    ioCount <= 200 &&
    Number.isInteger(base) &&
    base >= 2 &&
    base <= 10;
  return holds
    ? { kind: 'path_latency', ioCount, base }
    : 'prio path_latency needs prio_args "io_num=N base_num=M", N from 2 to 200 and M from 2 to 10';
}

/** What single values cannot show. */
function contradictionIn(layers: readonly Section[], settings: Settings): Diagnostic | null {
  const { pollingMs, maxPollingMs, fastIoFailMs, devLossMs } = settings;
  const placeIn = (name: string): Place => layers.find((layer) => layer.has(name))?.get(name) ?? emptySetting;
  if (maxPollingMs < pollingMs) {
    return complain(placeIn('max_polling_interval'), 'max_polling_interval is less than polling_interval');
  }
  if (devLossMs !== null && fastIoFailMs !== null && devLossMs <= fastIoFailMs) {
    return complain(placeIn('dev_loss_tmo'), 'dev_loss_tmo must be more than fast_io_fail_tmo');
  }
  return null;
}

/** Every section with what stands around it, so that a contradiction is found before there is a LUN. */
function checkTogether(conf: Conf, diagnostics: Diagnostic[]): void {
  const { defaults, overrides } = conf;
  const meetings: readonly (readonly Section[])[] = [
    [defaults],
    [overrides, defaults],
    ...conf.protocols.map(({ settings }) => [settings, overrides, defaults]),
    ...conf.devices.map(({ settings }) => [overrides, settings, defaults]),
    ...conf.multipaths.map(({ settings }) => [settings, overrides, defaults]),
  ];
  const found = new Map<string, Diagnostic>();
  for (const layers of meetings) {
    try {
      const contradiction = contradictionIn(layers, meaningOf(layers, { wwid: '' }));
      if (contradiction !== null) throw contradiction;
    } catch (thrown) {
      if (!isDiagnostic(thrown)) throw thrown;
      found.set(describeDiagnostic(thrown, ''), thrown);
    }
  }
  diagnostics.push(...found.values());
}
