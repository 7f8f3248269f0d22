/**
 * `deno task bench:start [--runs N] [--json]`: how long a user waits for the first
 * moving progress bar, with Deno's cache warm and no results stored.
 *
 * Each command runs as a user starts it, in a terminal of its own (util-linux's
 * `script`), and is ended when its bar has moved.
 *
 * @module
 */
import { conceptPictures } from "../../examples/concept_pictures.ts";
import { encodePng } from "../../mod.ts";
import { command, runCommand } from "../../src/cli/command.ts";
import { flag, optionTable, whole } from "../../src/cli/options.ts";
import { cannot } from "../../src/core/errors.ts";
import { median } from "../../src/evaluation/statistics.ts";
import { root } from "../tools/repository.ts";

/** What a user sees when, in milliseconds since the command was given. */
export interface StartRow {
  /** The command. */
  readonly command: string;
  /** The first bar. */
  readonly bar: number;
  /** The first bar that says something else. */
  readonly moved: number;
  /** Time that it computed until then, on all cores. */
  readonly computed: number;
}

/** Time of a process and of all that it started, in milliseconds; Linux only. */
async function computed(pid: number): Promise<number> {
  const texts: string[] = [];
  for await (const { name } of Deno.readDir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const text = await Deno.readTextFile(`/proc/${name}/stat`).catch(() => "");
    // The second field is a name in parentheses.
    texts.push(`${name} ${text.slice(text.lastIndexOf(")") + 2)}`);
  }
  const ours = new Set([pid]);
  let sum = 0;
  // Children have larger numbers than those that started them.
  const rows = texts.map((text) => text.split(" ").map(Number));
  for (const fields of rows.sort(([a], [b]) => a - b)) {
    if (ours.has(fields[2])) ours.add(fields[0]);
    if (ours.has(fields[0])) sum += 10 * (fields[12] + fields[13]);
  }
  return sum;
}

/** Starts a command, and ends it when its bar has moved. */
async function start(command: string): Promise<Omit<StartRow, "command">> {
  const began = performance.now();
  const child = new Deno.Command("script", {
    args: ["-qfec", `stty cols 100; ${command}`, "/dev/null"],
    cwd: root,
    stdin: "null",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  let text = "";
  let bar: { said: string; at: number } | undefined;
  try {
    const decoder = new TextDecoder();
    for await (const bytes of child.stdout) {
      text += decoder.decode(bytes, { stream: true });
      const said = text.split(/[\r\n]/).findLast((line) =>
        /[·█].*\d+\/\d+/.test(line)
      );
      const at = performance.now() - began;
      if (said === undefined || said === bar?.said) continue;
      if (bar) {
        return { bar: bar.at, moved: at, computed: await computed(child.pid) };
      }
      bar = { said, at };
    }
  } finally {
    child.kill("SIGKILL");
    await child.status;
  }
  throw cannot(`measure ${command}`, "a bar that moves", text);
}

/** Pictures to train on. */
async function writePictures(folder: string): Promise<void> {
  await Deno.mkdir(folder);
  for (const [i, { pixels }] of (await conceptPictures("bobo")).entries()) {
    await Deno.writeFile(`${folder}/${i}.png`, encodePng(pixels));
  }
}

/**
 * Measures all commands.
 *
 * @param runs Runs of each.
 * @param say Called with lines for people.
 */
export async function measureStarts(
  runs: number,
  say: (line: string) => void,
): Promise<StartRow[]> {
  const folder = await Deno.makeTempDir();
  const deno = Deno.execPath();
  try {
    await writePictures(`${folder}/pictures`);
    const rows: StartRow[] = [];
    for (
      const [name, options] of [
        ["ablation --quick", ""],
        ["train", `--name bobo --class animal --images ${folder}/pictures`],
        ["sample", '--prompt "a fox on grass"'],
      ]
    ) {
      const found: Omit<StartRow, "command">[] = [];
      // The first run fills Deno's own cache and is not counted.
      for (let i = 0; i <= runs; i++) {
        const out = `--out ${folder}/${rows.length}-${i}`;
        const row = await start(`${deno} task ${name} ${options} ${out}`);
        if (i > 0) found.push(row);
      }
      const middle = (part: keyof (typeof found)[0]) =>
        median(found.map((row) => row[part]));
      const row = {
        command: name,
        bar: middle("bar"),
        moved: middle("moved"),
        computed: middle("computed"),
      };
      rows.push(row);
      const [bar, moved, spent] = [row.bar, row.moved, row.computed].map((ms) =>
        (ms / 1000).toFixed(2)
      );
      say(`${name}: bar ${bar} s, moved ${moved} s, computed ${spent} s`);
    }
    return rows;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** `deno task bench:start`. */
const startBench = command({
  name: "bench:start",
  what: "measure",
  summary: "say how long a user waits",
  usage: "deno task bench:start [options]",
  about: "Says how long ablation --quick, train and sample take until their " +
    "bar moves.",
  options: optionTable({
    runs: {
      type: whole({ least: 1 }),
      default: 5,
      help: "runs of each; medians count",
    },
    json: { type: flag, help: "prints JSON only" },
  }),
  request: (values) => values,
  async run({ runs, json }) {
    const rows = await measureStarts(runs, (line) => console.error(line));
    if (json) console.log(JSON.stringify(rows, null, 2));
  },
});

if (import.meta.main) Deno.exit(await runCommand(startBench, Deno.args));
