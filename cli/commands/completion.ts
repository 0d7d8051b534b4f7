/** Completion scripts, made from what the verbs say of themselves, so that they cannot be behind. */
import { Argument, Command } from 'commander';
import { examples } from '../options.ts';

const shells = ['bash', 'zsh', 'fish'] as const;
type Shell = (typeof shells)[number];

/** What a word on the command line is of. */
type Kind = 'array' | 'file' | 'disk' | 'folder' | 'none' | { readonly choices: readonly string[] };

interface Flag {
  readonly names: readonly string[];
  readonly says: string;
  /** Null for one that takes no value. */
  readonly value: Kind | null;
}

interface Described {
  readonly name: string;
  readonly says: string;
  readonly flags: readonly Flag[];
  readonly words: readonly Kind[];
  /** The last kind goes on for all that follow. */
  readonly isVariadic: boolean;
}

export function define(command: Command): void {
  command
    .addArgument(new Argument('<shell>', 'whose script').choices([...shells, 'disks']))
    .argument('[array]')
    .action(async (shell: Shell | 'disks', array?: string) => {
      if (shell === 'disks') await printDisks(array);
      else process.stdout.write(scripts[shell](await describe()));
    });
  command.usage('<bash|zsh|fish>');
  examples(command, [
    "echo 'source <(raidsim completion bash)' >> ~/.bashrc",
    'raidsim completion zsh > "$fpath[1]/_raidsim"',
    'raidsim completion fish > ~/.config/fish/completions/raidsim.fish',
  ]);
}

const scripts: Readonly<Record<Shell, (verbs: readonly Described[]) => string>> = {
  bash: bashScript,
  zsh: zshScript,
  fish: fishScript,
};

/** For the scripts: what the disks of an array are called. Quiet about everything else. */
async function printDisks(array: string | undefined): Promise<void> {
  if (array === undefined) return;
  const { readFile } = await import('node:fs/promises');
  const { basename, join } = await import('node:path');
  try {
    const manifest = JSON.parse(await readFile(join(array, 'raidsim.json'), 'utf8')) as {
      members?: string[];
    };
    const names = (manifest.members ?? []).map((path) => basename(path).replace(/\.(img|raw|dd|bin)$/, ''));
    process.stdout.write(names.map((name) => `${name}\n`).join(''));
  } catch {
    return;
  }
}

async function describe(): Promise<readonly Described[]> {
  const { verbs } = await import('../verbs.ts');
  const described: Described[] = [];
  for (const row of verbs) {
    const command = new Command(row.name);
    if (row.name === 'completion') command.argument('<shell>');
    else (await row.load()).define(command);
    const { registeredArguments } = command;
    described.push({
      name: row.name,
      says: row.summary,
      flags: [
        ...command.options.map((option) => ({
          names: [option.long, option.short].filter((name) => name !== undefined && name !== null),
          says: option.description,
          value:
            option.required || option.optional
              ? kindOf(option.long ?? '', option.flags, option.argChoices)
              : null,
        })),
        { names: ['--help'], says: 'help', value: null },
      ],
      words:
        row.name === 'completion'
          ? [{ choices: shells }]
          : registeredArguments.map((argument) => kindOf('', argument.name(), argument.argChoices)),
      isVariadic: registeredArguments.at(-1)?.variadic === true,
    });
  }
  described.push({
    name: 'help',
    says: 'help for a verb',
    flags: [],
    words: [{ choices: verbs.map(({ name }) => name) }],
    isVariadic: false,
  });
  return described;
}

const known: Readonly<Record<string, readonly string[]>> = {
  '--level': ['linear', 'raid0', 'raid1', 'raid4', 'raid5', 'raid6', 'raid10'],
  '--layout': [
    'left-symmetric',
    'left-asymmetric',
    'right-symmetric',
    'right-asymmetric',
    'near=2',
    'far=2',
    'offset=2',
  ],
  '--chunk': ['64K', '128K', '256K', '512K', '1M'],
};

function kindOf(flag: string, placeholder: string, choices: readonly string[] | undefined): Kind {
  if (choices !== undefined) return { choices };
  const words = known[flag];
  if (words !== undefined) return { choices: words };
  if (placeholder === 'what') return { choices: ['read', 'write', 'layout'] };
  if (/\b(array)\b/.test(placeholder)) return 'array';
  if (/\b(disk)\b/.test(placeholder)) return 'disk';
  if (/\b(dir|directory)\b/.test(placeholder)) return 'folder';
  return /\bfile\b/.test(placeholder) ? 'file' : 'none';
}

function bashScript(verbs: readonly Described[]): string {
  const cases = verbs.map((verb) => {
    const withValue = verb.flags
      .filter(({ value }) => value !== null)
      .map(({ names, value }) => `        ${names.join('|')}) ${bashWords(value ?? 'none')} return ;;`);
    const words = verb.words.map((kind, index) => {
      const isLast = index === verb.words.length - 1 && verb.isVariadic;
      return `        ${isLast ? '*' : index}) ${bashWords(kind)} ;;`;
    });
    const flags = verb.flags.map(({ names }) => names[0]).join(' ');
    return `    ${verb.name})
      case "$previous" in
${withValue.join('\n')}
      esac
      if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "${flags}" -- "$word")); return; fi
      case $at in
${words.join('\n')}
      esac ;;`;
  });
  const takesValue = new Set(
    verbs.flatMap(({ flags }) => flags.filter(({ value }) => value !== null).flatMap(({ names }) => names)),
  );
  return `# raidsim completion for bash: source <(raidsim completion bash)
_raidsim() {
  local word=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]} verb='' array='' at=0 index
  COMPREPLY=()
  for ((index = 1; index < COMP_CWORD; index++)); do
    case \${COMP_WORDS[index]} in
      ${[...takesValue].join('|')}) ((index++)) ;;
      -*) ;;
      *) if [[ -z $verb ]]; then verb=\${COMP_WORDS[index]}; else [[ -z $array ]] && array=\${COMP_WORDS[index]}; ((at++)); fi ;;
    esac
  done
  case $verb in
    '') COMPREPLY=($(compgen -W "${verbs.map(({ name }) => name).join(' ')} --help --version" -- "$word")) ;;
${cases.join('\n')}
  esac
}
complete -o filenames -F _raidsim raidsim
`;
}

function bashWords(kind: Kind): string {
  if (typeof kind === 'object') return `COMPREPLY=($(compgen -W "${kind.choices.join(' ')}" -- "$word"));`;
  switch (kind) {
    case 'array':
    case 'folder':
      return `COMPREPLY=($(compgen -d -- "$word"));`;
    case 'disk':
      return `COMPREPLY=($(compgen -W "$(raidsim completion disks "$array" 2>/dev/null)" -- "$word") $(compgen -f -- "$word"));`;
    case 'file':
      return `COMPREPLY=($(compgen -f -- "$word"));`;
    case 'none':
      return ':;';
  }
}

function zshScript(verbs: readonly Described[]): string {
  const list = verbs
    .map(({ name, says }) => `    ${zshQuoted(`${name.replaceAll(':', '\\:')}:${says}`)}`)
    .join('\n');
  const cases = verbs.map((verb) => {
    const flags = verb.flags.map(({ names, says, value }) => {
      const text = zshText(says);
      const action = value === null ? '' : `:${names[0]?.slice(2) ?? ''}:${zshAction(value)}`;
      const exclusive = names.length > 1 ? `(${names.join(' ')})` : '';
      const set = names.length > 1 ? `'{${names.join(',')}}'` : (names[0] ?? '');
      return `        '${exclusive}${set}[${text}]${action}'`;
    });
    const words = verb.words.map((kind, index) => {
      const isLast = index === verb.words.length - 1 && verb.isVariadic;
      const label = typeof kind === 'object' ? 'what' : kind;
      return `        '${isLast ? '*' : index + 1}:${label}:${zshAction(kind)}'`;
    });
    return `      ${verb.name})
      _arguments \\
${[...flags, ...words].join(' \\\n')} ;;`;
  });
  return `#compdef raidsim
# raidsim completion for zsh: raidsim completion zsh > "\${fpath[1]}/_raidsim"
_raidsim_disks() {
  local -a disks
  disks=(\${(f)"$(raidsim completion disks \${words[2]} 2>/dev/null)"})
  _alternative 'disks:disk:($disks)' 'files:file:_files'
}
_raidsim() {
  local -a verbs
  verbs=(
${list}
  )
  if ((CURRENT == 2)); then
    _describe -t verbs verb verbs
    return
  fi
  shift words
  ((CURRENT--))
  case $words[1] in
${cases.join('\n')}
  esac
}
if [ "$funcstack[1]" = _raidsim ]; then _raidsim "$@"; else compdef _raidsim raidsim; fi
`;
}

function zshAction(kind: Kind): string {
  if (typeof kind === 'object') return `(${kind.choices.join(' ')})`;
  switch (kind) {
    case 'array':
    case 'folder':
      return '_files -/';
    case 'disk':
      return '_raidsim_disks';
    case 'file':
      return '_files';
    case 'none':
      return ' ';
  }
}

function zshText(text: string): string {
  return text.replace(/[[\]:\\]/g, '\\$&').replaceAll("'", "'\\''");
}

function zshQuoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function fishScript(verbs: readonly Described[]): string {
  const lines = [
    '# raidsim completion for fish: raidsim completion fish > ~/.config/fish/completions/raidsim.fish',
    'complete -c raidsim -f',
    `complete -c raidsim -n __fish_use_subcommand -l help -d help`,
    `complete -c raidsim -n __fish_use_subcommand -l version -d version`,
    'function __raidsim_disks',
    '  set -l words (commandline -opc)',
    '  test (count $words) -ge 3; and raidsim completion disks $words[3] 2>/dev/null',
    'end',
    '# How many words there are behind the verb; options are not counted.',
    'function __raidsim_at',
    '  set -l words (string match -v -- "-*" (commandline -opc))',
    '  test (math (count $words) - 2) $argv[1] $argv[2]',
    'end',
  ];
  for (const { name, says } of verbs)
    lines.push(`complete -c raidsim -n __fish_use_subcommand -a ${name} -d ${fishQuoted(says)}`);
  for (const { name, flags, words, isVariadic } of verbs) {
    const here = `'__fish_seen_subcommand_from ${name}'`;
    for (const { names, says, value } of flags) {
      const spelt = names.map((each) =>
        each.startsWith('--') ? `-l ${each.slice(2)}` : `-s ${each.slice(1)}`,
      );
      const takes = value === null ? '' : ` ${fishValue(value)}`;
      lines.push(`complete -c raidsim -n ${here} ${spelt.join(' ')} -d ${fishQuoted(says)}${takes}`);
    }
    for (const [index, kind] of words.entries()) {
      const test = index === words.length - 1 && isVariadic ? '-ge' : '-eq';
      const place = `'__fish_seen_subcommand_from ${name}; and __raidsim_at ${test} ${index}'`;
      if (kind !== 'none') lines.push(`complete -c raidsim -n ${place} ${fishWords(kind)}`);
    }
  }
  return `${lines.join('\n')}\n`;
}

function fishValue(kind: Kind): string {
  if (typeof kind === 'object') return `-x -a '${kind.choices.join(' ')}'`;
  return kind === 'none' ? '-x' : '-r -F';
}

function fishWords(kind: Exclude<Kind, 'none'>): string {
  if (typeof kind === 'object') return `-a '${kind.choices.join(' ')}'`;
  switch (kind) {
    case 'array':
    case 'folder':
      return `-a '(__fish_complete_directories)'`;
    case 'disk':
      return `-F -a '(__raidsim_disks)'`;
    case 'file':
      return '-F';
  }
}

function fishQuoted(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}
