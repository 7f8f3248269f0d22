/**
 * `deno task completions`: what a shell offers behind `deno task COMMAND`, from
 * the commands' option tables.
 *
 * @module
 */
import { type Command, command, runCommand } from "../../src/cli/command.ts";
import { convertCommand } from "../../src/cli/convert.ts";
import { evaluateCommand } from "../../src/cli/evaluate.ts";
import { EXPERIMENT_COMMANDS } from "../../src/cli/experiment.ts";
import { fuseCommand } from "../../src/cli/fuse.ts";
import { inspectCommand } from "../../src/cli/inspect.ts";
import { memoryCommand } from "../../src/cli/memory.ts";
import {
  oneOf,
  type Option,
  optionName,
  type OptionTable,
  optionTable,
  takesValue,
  type Values,
} from "../../src/cli/options.ts";
import { sampleCommand } from "../../src/cli/sample.ts";
import { trainCommand } from "../../src/cli/train.ts";
import { workerCommand } from "../../src/cli/worker.ts";
import { verifyCommand } from "../verify/main.ts";
import { microReportCommand } from "./micro_report.ts";
import { pretrainCommand } from "./pretrain/main.ts";

/** Shells that there are completions for. */
const SHELLS = ["bash", "zsh", "fish"] as const;

/** A command as completion sees it. */
export interface Completed {
  /** Its name behind `deno task`, such as `fuse` or `experiment lambda`. */
  readonly name: string;
  /** What it does, in a line. */
  readonly summary: string;
  /** Its options. */
  readonly options: OptionTable;
}

/** The option of `deno task completions`. */
const OPTIONS = optionTable({
  shell: {
    type: oneOf(SHELLS),
    hint: "SHELL",
    argument: true,
    needed: true,
    help: "bash, zsh or fish",
  },
});

type Known = Pick<Command<unknown>, "name" | "summary" | "options">;

const listed = (...commands: readonly Known[]): Completed[] =>
  commands.flatMap(({ name, summary, options }) =>
    options ? [{ name, summary, options }] : []
  );

/** `ablation` and `experiment NAME`. */
const experiments = (): Known[] =>
  EXPERIMENT_COMMANDS.map((one) => ({
    ...one,
    name: one.name === "ablation" ? one.name : `experiment ${one.name}`,
  }));

/** Options by how they are written, arguments left out. */
function named({ options }: Completed): [string, Option][] {
  return Object.entries(options).filter(([, option]) => !option.argument)
    .map(([field, option]) => [optionName(field, option), option]);
}

/** Bash's answer to what stands behind an option. */
function bashValue({ type: { complete } }: Option): string {
  if (complete === "file") return "files";
  if (complete === "folder") return "folders";
  return complete ? `words "${complete.join(" ")}"` : ":";
}

/** First words of commands, or second words behind a first one. */
function words(commands: readonly Completed[], first?: string): string[] {
  const found = commands.map(({ name }) => name.split(" "))
    .filter(([one]) => first === undefined || one === first)
    .map(([one, two]) => first === undefined ? one : two);
  return [...new Set(found)];
}

function bash(commands: readonly Completed[]): string {
  const cases = commands.map((one) => {
    const values = named(one).filter(([, option]) => takesValue(option))
      .map(([name, option]) => `        ${name}) ${bashValue(option)} ;;`);
    const places = Object.values(one.options).filter((o) => o.argument);
    const free = places.length > 0 ? bashValue(places[0]) : ":";
    const all = [...named(one).map(([name]) => name), "--help"];
    return `    "${one.name}")
      case "$before" in
${values.join("\n")}
        *) if [[ "$now" == -* ]]; then words "${
      all.join(" ")
    }"; else ${free}; fi ;;
      esac ;;`;
  });
  return `# Mix-of-Show: completion of deno task COMMAND.
# bash: source <(deno task completions bash)
_mix_of_show() {
  local now="\${COMP_WORDS[COMP_CWORD]}" before="\${COMP_WORDS[COMP_CWORD-1]}"
  words() { COMPREPLY=($(compgen -W "$1" -- "$now")); }
  files() { COMPREPLY=($(compgen -f -- "$now")); }
  folders() { COMPREPLY=($(compgen -d -- "$now")); }
  COMPREPLY=()
  if [[ "\${COMP_WORDS[1]}" != task ]]; then
    if declare -F _deno > /dev/null; then _deno "$@"; fi
    return
  fi
  if [[ $COMP_CWORD -eq 2 ]]; then
    words "${words(commands).join(" ")}"
    return
  fi
  local command="\${COMP_WORDS[2]}"
  if [[ "$command" == experiment ]]; then
    if [[ $COMP_CWORD -eq 3 ]]; then
      words "${words(commands, "experiment").join(" ")}"
      return
    fi
    command="experiment \${COMP_WORDS[3]}"
  fi
  case "$command" in
${cases.join("\n")}
  esac
}
complete -o filenames -F _mix_of_show deno
`;
}

/** A text in fish's single quotes. */
function quoted(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}

/** The lines that offer a command's name and options in fish. */
function fishLines({ name, summary, ...rest }: Completed): string[] {
  const [first, second = first] = name.split(" ");
  const seen = (word: string) => `__fish_seen_subcommand_from ${word}`;
  const before = second === first ? "task" : first;
  return [
    `complete -c deno -n '${seen(before)}; and not ${seen(second)}' -f ` +
    `-a ${second} -d ${quoted(summary)}`,
    ...named({ name, summary, ...rest }).map(([option, { help, ...one }]) => {
      const { complete } = one.type;
      const value = !takesValue({ help, ...one })
        ? "-f"
        : complete === "file"
        ? "-r -F"
        : complete === "folder"
        ? "-x -a '(__fish_complete_directories)'"
        : complete
        ? `-x -a ${quoted((complete as readonly string[]).join(" "))}`
        : "-x";
      return `complete -c deno -n '${seen(second)}' ` +
        `-l ${option.slice(2)} ${value} -d ${quoted(help.split("\n")[0])}`;
    }),
  ];
}

function fish(commands: readonly Completed[]): string {
  return `# Mix-of-Show: completion of deno task COMMAND.
# fish: deno task completions fish | source
complete -c deno -n '__fish_seen_subcommand_from task; and not ` +
    `__fish_seen_subcommand_from experiment' -f -a experiment -d ${
      quoted("run one of the paper's experiments")
    }
${commands.flatMap(fishLines).join("\n")}
`;
}

/**
 * The script that a shell reads.
 *
 * @param shell Which shell.
 * @param commands The commands.
 */
export function completionScript(
  shell: typeof SHELLS[number],
  commands: readonly Completed[],
): string {
  if (shell === "fish") return fish(commands);
  if (shell === "bash") return bash(commands);
  return `autoload -U +X bashcompinit && bashcompinit\n${bash(commands)}`;
}

/** Every command with an option table. */
export function completedCommands(): Completed[] {
  return listed(
    trainCommand,
    fuseCommand,
    sampleCommand,
    evaluateCommand,
    convertCommand,
    inspectCommand,
    memoryCommand,
    pretrainCommand,
    workerCommand,
    verifyCommand,
    microReportCommand,
    ...experiments(),
    completionsCommand,
  );
}

/** `deno task completions`. */
export const completionsCommand: Command<Values<typeof OPTIONS>> = command({
  name: "completions",
  what: "print completions",
  summary: "print a script that completes options in a shell",
  usage: "deno task completions SHELL",
  about: "Prints a script that makes a shell complete commands and options.",
  options: OPTIONS,
  examples: [
    "source <(deno task completions bash)",
    "deno task completions fish | source",
  ],
  request: (values) => values,
  run({ shell }) {
    console.log(completionScript(shell, completedCommands()));
    return Promise.resolve();
  },
});

if (import.meta.main) {
  Deno.exit(await runCommand(completionsCommand, Deno.args));
}
