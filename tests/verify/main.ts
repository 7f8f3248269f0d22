/**
 * `deno task verify`: compares the library with a folder of golden values.
 *
 * @module
 */
import { type Command, command, runCommand } from "../../src/cli/command.ts";
import {
  BACKEND_OPTION,
  flag,
  folder,
  optionTable,
  text,
  type Values,
} from "../../src/cli/options.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { cannot } from "../../src/core/errors.ts";
import { exists, pathOf } from "../../src/io/files.ts";
import { type Line, verify } from "./mod.ts";

const WHAT = "verify";

const OPTIONS = optionTable({
  folder: {
    type: folder,
    argument: true,
    hint: "FOLDER",
    default: pathOf(new URL("../../tests/fixtures", import.meta.url)),
    help: "laid out like the fixtures of this project; the architecture is " +
      "read from its configs",
  },
  only: {
    type: text,
    hint: "GLOB",
    help: "only items whose name matches ('unet/*', '{vae,clip}*')",
  },
  ...BACKEND_OPTION,
  json: { type: flag, help: "one JSON document on stdout" },
  verbose: { type: flag, help: "say where every tolerance comes from" },
});

/** What the command line asks for. */
type Request = Values<typeof OPTIONS>;

function number(value: number | undefined): string {
  return value === undefined
    ? "-"
    : Number.isInteger(value)
    ? String(value)
    : value.toExponential(2);
}

/**
 * One line of the report.
 *
 * @param line The item.
 * @param verbose Whether the tolerance's source is shown too.
 */
export function format(line: Line, verbose = false): string {
  const cells = [
    line.name.padEnd(56),
    number(line.error).padStart(9),
    number(line.tolerance).padStart(9),
    line.status,
  ].join("  ");
  const explain = line.reason && (verbose || line.status !== "ok");
  return explain ? `${cells}  (${line.reason})` : cells;
}

/** Counts of each status. */
export function summary(
  lines: readonly Line[],
): Record<Line["status"], number> {
  const count = (status: Line["status"]) =>
    lines.filter((line) => line.status === status).length;
  return {
    ok: count("ok"),
    FAIL: count("FAIL"),
    "not covered": count("not covered"),
  };
}

/**
 * Compares and says what came out.
 *
 * @param request What is asked for.
 * @throws If the folder is not there, something fails or nothing matches.
 */
async function runVerify(request: Request): Promise<void> {
  if (!await exists(request.folder)) {
    throw cannot(WHAT, "a folder that exists", request.folder);
  }
  const started = performance.now();
  const backend = await selectBackend(request.backend);
  if (!request.json) {
    console.log(
      `${request.folder} on ${backend.name}${
        backend.note ? ` (${backend.note})` : ""
      }`,
    );
  }
  const lines: Line[] = [];
  for await (
    const line of verify(
      request.folder,
      request.only === undefined ? {} : { only: request.only },
    )
  ) {
    lines.push(line);
    if (!request.json) console.log(format(line, request.verbose));
  }
  const counts = summary(lines);
  const seconds = (performance.now() - started) / 1000;
  if (request.json) {
    console.log(JSON.stringify(
      {
        folder: request.folder,
        backend: backend.name,
        seconds,
        counts,
        items: lines,
      },
      // Infinity, the error of a wrong shape, has no JSON form.
      (_, value) => value === Infinity ? "Infinity" : value,
      2,
    ));
  } else {
    console.log(
      `${counts.ok} ok, ${counts.FAIL} FAIL, ${
        counts["not covered"]
      } not covered, ${seconds.toFixed(1)} s`,
    );
  }
  if (lines.length === 0) {
    throw cannot("verify", "items that match", request.only ?? "none");
  }
  if (counts.FAIL > 0) {
    throw cannot("pass", "no item that fails", `${counts.FAIL}`);
  }
}

/** `deno task verify`. */
export const verifyCommand: Command<Request> = command({
  name: "verify",
  summary: "compare the library with a folder of golden values",
  usage: "deno task verify [FOLDER] [options]",
  about:
    `Compares the library with golden values, one line an item: name, maximum error,
tolerance, ok | FAIL | not covered.`,
  options: OPTIONS,
  examples: [
    "deno task verify",
    "deno task verify ../shared/fixtures --backend wasm",
    "deno task verify ../shared/fixtures --only 'lora/*' --verbose",
  ],
  request(values) {
    if (!values.json || !values.verbose) return values;
    throw cannot(WHAT, "--json, which says all, or --verbose", "both");
  },
  run: runVerify,
});

if (import.meta.main) Deno.exit(await runCommand(verifyCommand, Deno.args));
