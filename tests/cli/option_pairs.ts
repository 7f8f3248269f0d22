/**
 * A table of options, each with pairs of runs that show what it does: with it
 * the result is another one, or the run says why it cannot be.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { type Command, runCommand } from "../../src/cli/command.ts";
import { optionName } from "../../src/cli/options.ts";
import { decodePng } from "../../src/io/png.ts";
import { openSafetensors } from "../../src/io/safetensors.ts";

/**
 * Options by how they are written, with their values; `true` for a flag, `null`
 * to leave one out that both runs would have. Arguments without a name are
 * under `""`.
 */
export type Args = Readonly<
  Record<string, string | number | true | null | readonly string[]>
>;

/** A pair of runs. */
export interface Pair {
  /** What both have beside the command's own. */
  readonly both?: Args;
  /** What the second has more, or otherwise. */
  readonly add: Args;
  /** The second says this, where the option can change nothing. */
  readonly says?: RegExp;
  /** The first is refused like this, and the second is not. */
  readonly needs?: RegExp;
  /**
   * What differs is what is said, such as the backend's name, or what the
   * command is asked: for what a test cannot run.
   */
  readonly shows?: "said" | "asked";
  /** The command itself runs, also where others only pretend. */
  readonly real?: boolean;
}

/** Options whose pairs stand with another command of the same code. */
export interface As {
  /** That command's name. */
  readonly as: string;
}

/** Options of a command and their pairs. */
export interface OptionRows {
  /** The command. */
  readonly command: Pick<Command<unknown>, "name" | "options" | "parse">;
  /** Its usual command line, small enough for a test. */
  readonly base: Args;
  /** By field of the command's option table. */
  readonly pairs: Readonly<Record<string, Pair | readonly Pair[] | As>>;
  /** What a JSON file says came out, without what was asked for. */
  // deno-lint-ignore no-explicit-any
  readonly report?: (name: string, json: any) => unknown;
  /** Names of fields in JSON that differ from run to run, such as times. */
  readonly volatile?: readonly string[];
  /** Folder that the command writes into; emptied before each run. */
  readonly out: string;
  /** Finished work is kept from run to run; the first fills it. */
  readonly store?: boolean;
  /** Whether it can only be asked: a run downloads something. */
  readonly askedOnly?: boolean;
  /** What is done before each run. */
  readonly before?: () => Promise<void>;
  /**
   * Does what is asked for in a lab that only pretends, and gives numbers and
   * pictures; pairs that are not `real` run so.
   */
  // deno-lint-ignore no-explicit-any
  readonly pretend?: (request: any) => Promise<
    { readonly data: object; readonly pictures: unknown }
  >;
}

/** The arguments of a command line. */
export function argumentsOf(...parts: readonly Args[]): string[] {
  const { "": free = [], ...named } = Object.assign({}, ...parts) as Args;
  return [
    ...(Array.isArray(free) ? free : [String(free)]),
    ...Object.entries(named).flatMap(([name, value]) =>
      value === null
        ? []
        : value === true
        ? [name]
        : (Array.isArray(value) ? value : [String(value)])
          .flatMap((one) => [name, one])
    ),
  ];
}

/** What a command line asks for, as text. */
function asked(
  { parse }: OptionRows["command"],
  args: readonly string[],
): string {
  return JSON.stringify(parse(args));
}

/** What came out of a run. */
interface Outcome {
  readonly code: number;
  readonly said: string;
  readonly result: string;
}

async function digest(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  return new Uint8Array(hash).toHex().slice(0, 16);
}

/** A JSON text without what differs from run to run. */
function steady(text: string, volatile: readonly string[]): string {
  return JSON.stringify(
    JSON.parse(text, (key, value) => volatile.includes(key) ? "…" : value),
  );
}

/** Tensors and metadata of a file. */
export async function tensorsOf(path: string): Promise<string> {
  const file = await openSafetensors(path).catch(() => undefined);
  // Some are cut off on purpose.
  if (!file) return await digest(await Deno.readFile(path));
  try {
    // How a concept was trained is what was asked for.
    const { "mix_of_show.meta": _, ...said } = file.metadata;
    const parts = [JSON.stringify(said)];
    for (const name of [...file.entries.keys()].sort()) {
      const { dtype, shape, data } = await file.read(name);
      parts.push(
        `${name} ${dtype} ${shape} ${await digest(new Uint8Array(data))}`,
      );
    }
    return parts.join("\n");
  } finally {
    file.close();
  }
}

/** All that a run has written. */
async function written(
  folder: string,
  rows: OptionRows,
  below = "",
): Promise<string[]> {
  const { volatile = [], report = (_name, json) => json } = rows;
  const parts: string[] = [];
  const entries = await Array.fromAsync(Deno.readDir(folder));
  for (
    const { name, isDirectory } of entries.toSorted((a, b) =>
      a.name < b.name ? -1 : 1
    )
  ) {
    const path = `${folder}/${name}`, shown = `${below}${name}`;
    if (isDirectory) {
      // The store of the experiments is work, not a result.
      if (name !== "cache") {
        parts.push(...await written(path, rows, `${shown}/`));
      }
    } else if (/\.(html|md|csv)$/.test(name)) {
      // Reports of what JSON beside them says, with times in them.
      parts.push(shown);
    } else if (name.endsWith(".json")) {
      parts.push(
        shown,
        steady(
          JSON.stringify(
            report(name, JSON.parse(await Deno.readTextFile(path))),
          ) ?? "null",
          volatile,
        ),
      );
    } else if (name.endsWith(".safetensors")) {
      parts.push(shown, await tensorsOf(path));
    } else if (name.endsWith(".png")) {
      // Inside stands what was asked for.
      const { width, height, data } = decodePng(await Deno.readFile(path));
      parts.push(shown, `${width}×${height}`, await digest(data.slice()));
    } else parts.push(shown, await digest(await Deno.readFile(path)));
  }
  return parts;
}

/** Output on the console, times and rates taken out. */
function calm(text: string, volatile: readonly string[]): string {
  try {
    return steady(text, volatile);
  } catch {
    return text.replace(/^([^\n]*: \d+\/\d+),.*$/gm, "$1")
      .replace(/\b[\d.]+ (s|min|h|ms)\b|\bseconds [\d.]+/g, "…");
  }
}

async function outcome(
  rows: OptionRows,
  args: readonly string[],
): Promise<Outcome> {
  const { command, out, volatile = [], before } = rows;
  await Deno.remove(out, { recursive: true }).catch(() => {});
  await Deno.mkdir(out, { recursive: true });
  await before?.();
  const { log, error } = console;
  const { writeSync } = Deno.stderr;
  const printed: string[] = [];
  const said: string[] = [];
  console.log = (...parts) => void printed.push(parts.join(" "));
  console.error = (...parts) => void said.push(parts.join(" "));
  Deno.stderr.writeSync = (bytes) => {
    said.push(new TextDecoder().decode(bytes).trimEnd());
    return bytes.length;
  };
  try {
    const code = await runCommand(command as Command<unknown>, args);
    const result = code === 0
      ? [
        calm(printed.join("\n"), volatile),
        ...await written(out, rows),
      ].join("\n")
      : "";
    return { code, said: calm(said.join("\n"), volatile), result };
  } finally {
    Object.assign(console, { log, error });
    Deno.stderr.writeSync = writeSync;
  }
}

/** What a request comes to where the lab only pretends. */
async function pretended(
  { command, report = (_name, json) => json, volatile = [], pretend }:
    OptionRows,
  args: readonly string[],
): Promise<Outcome> {
  try {
    const { data, pictures } = await pretend!(command.parse(args));
    const numbers = report(`${command.name}.json`, data);
    const result = steady(JSON.stringify([numbers, pictures]), volatile);
    return { code: 0, said: "", result };
  } catch (error) {
    return { code: 1, said: (error as Error).message, result: "" };
  }
}

/** The pairs of a table, one by one. */
export function pairsOf(
  { pairs }: Pick<OptionRows, "pairs">,
): [string, Pair][] {
  return Object.entries(pairs).flatMap(([field, some]) =>
    "as" in some
      ? []
      : (Array.isArray(some) ? some : [some]).map((pair): [string, Pair] => [
        field,
        pair,
      ])
  );
}

/**
 * Runs every pair. The table must have every option of the command; the usual
 * run must come out the same twice, or no pair could tell anything.
 *
 * @param rows The table.
 * @param t Where each option becomes a step.
 */
export async function checkOptions(
  rows: OptionRows,
  t: Deno.TestContext,
): Promise<void> {
  const { command, base, pairs } = rows;
  assertEquals(
    Object.keys(pairs).sort(),
    Object.keys(command.options!).sort(),
    `options of ${command.name} and rows of the table`,
  );
  const isPretended = ({ real }: { readonly real?: boolean }) =>
    rows.pretend !== undefined && !real;
  const ways = [true, false].filter((way) =>
    !rows.askedOnly &&
    (rows.pretend === undefined
      ? !way
      : pairsOf(rows).some(([, pair]) => isPretended(pair) === way))
  );
  const known = new Map<string, Outcome>();
  const run = (args: readonly string[], pretends: boolean) =>
    pretends ? pretended(rows, args) : outcome(rows, args);
  await t.step("the same twice", async () => {
    const args = argumentsOf(base);
    assertEquals(asked(command, args), asked(command, args));
    for (const way of ways) {
      if (rows.store && !way) await run(args, way);
      const first = await run(args, way);
      const again = await run(args, way);
      assertEquals(first.code, 0, first.said);
      assertEquals(again.result, first.result);
      assertEquals(again.said, first.said);
      known.set([way, ...args].join("\0"), first);
    }
  });
  for (const [field, pair] of pairsOf(rows)) {
    const { both = {}, add, says, needs, shows } = pair;
    const way = isPretended(pair);
    const name = `${optionName(field, command.options![field])} ${
      argumentsOf(add).join(" ").slice(-60)
    }`;
    await t.step(name, async () => {
      const args = argumentsOf(base, both);
      if (shows === "asked") {
        const more = argumentsOf(base, both, add);
        assert(asked(command, args) !== asked(command, more), "the same");
        return;
      }
      const name = [way, ...args].join("\0");
      const without = known.get(name) ?? await run(args, way);
      known.set(name, without);
      const given = await run(argumentsOf(base, both, add), way);
      if (needs) {
        assert(without.code !== 0, `${field} is not needed`);
        assert(needs.test(without.said), `without it: ${without.said}`);
        assertEquals(given.code, 0, given.said);
        return;
      }
      assertEquals(without.code, 0, `without it: ${without.said}`);
      if (says) {
        assert(says.test(given.said), `it says: ${given.said}`);
        assert(!says.test(without.said), "the same is said without it");
        return;
      }
      assertEquals(given.code, 0, given.said);
      const same = shows
        ? given.said === without.said
        : given.result === without.result;
      assert(!same, `it changes nothing: ${without.result.slice(0, 300)}`);
    });
  }
}

/**
 * The table as Markdown: option, what both runs have, what the second has more,
 * what must be different.
 *
 * @param rows The table.
 */
export function optionTableOf(rows: OptionRows): string {
  const { command, base } = rows;
  const line = (args: Args) => {
    const text = Object.entries(args).map(([name, value]) =>
      value === null
        ? `without ${name}`
        : value === true
        ? name
        : `${name} ${Array.isArray(value) ? value.join(` ${name} `) : value}`
    ).join(" ").trim();
    return text === "" ? "" : `\`${text.replaceAll("|", "\\|")}\``;
  };
  return [
    `### ${command.name}`,
    "",
    `Both runs: ${line(base)}`,
    "",
    "| option | beside it | and with it | what must differ |",
    "| --- | --- | --- | --- |",
    ...pairsOf(rows).map(([field, { both = {}, add, says, needs, shows }]) =>
      `| ${optionName(field, command.options![field])} | ${line(both)} | ${
        line(add)
      } | ${
        says
          ? `says \`${says.source.replaceAll("|", "\\|")}\``
          : needs
          ? `refused without it: \`${needs.source.replaceAll("|", "\\|")}\``
          : shows
          ? `what is ${shows}`
          : "the result"
      } |`
    ),
    ...Object.entries(rows.pairs).flatMap(([field, some]) =>
      "as" in some
        ? [
          `| ${
            optionName(field, command.options![field])
          } | as ${some.as} | | |`,
        ]
        : []
    ),
    "",
  ].join("\n");
}
