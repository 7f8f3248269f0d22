/**
 * `deno task verify`: compares the library with a folder of golden values.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import {
  BACKEND_CHOICES,
  type BackendChoice,
  selectBackend,
} from "../../src/core/backend.ts";
import { cannot } from "../../src/core/errors.ts";
import { exists, pathOf } from "../../src/io/files.ts";
import { type Line, verify } from "./mod.ts";

const HELP = `deno task verify [FOLDER] [options]

Compares the library with golden values, one line an item: name, maximum error,
tolerance, ok | FAIL | not covered. FOLDER is laid out like the fixtures of this
project (default: tests/fixtures); the architecture is read from its configs.

  --only GLOB      only items whose name matches ('unet/*', '{vae,clip}*')
  --backend NAME   webgpu, wasm or cpu (default: the fastest there is)
  --json           one JSON document on stdout
  --verbose        say where every tolerance comes from
  --help           this text

Exit code: 0 if nothing failed, 1 if something did, 2 for bad arguments.

Examples:
  deno task verify
  deno task verify ../shared/fixtures --backend wasm
  deno task verify ../shared/fixtures --only 'lora/*' --verbose
`;

/** What the command line asks for. */
interface Request {
  readonly folder: string;
  readonly only?: string;
  readonly backend: BackendChoice;
  readonly json: boolean;
  readonly verbose: boolean;
  readonly help: boolean;
}

/**
 * Reads the command line.
 *
 * @param args Arguments after the script's name.
 * @throws If an option is unknown or a value does not fit.
 */
export function parseRequest(args: readonly string[]): Request {
  const what = "start verifying";
  const parsed = parseArgs([...args], {
    string: ["only", "backend"],
    boolean: ["json", "verbose", "help"],
    unknown: (name: string) => {
      if (name.startsWith("-")) {
        throw cannot(what, "a known option (--help)", name);
      }
    },
  });
  const folders = parsed._.map(String);
  if (folders.length > 1) {
    throw cannot(what, "one folder", folders.join(" "));
  }
  const backend = (parsed.backend ?? "auto") as BackendChoice;
  if (!BACKEND_CHOICES.includes(backend)) {
    throw cannot(what, BACKEND_CHOICES.join(", "), `--backend ${backend}`);
  }
  return {
    folder: folders[0] ??
      pathOf(new URL("../../tests/fixtures", import.meta.url)),
    ...(parsed.only === undefined ? {} : { only: parsed.only }),
    backend,
    json: parsed.json ?? false,
    verbose: parsed.verbose ?? false,
    help: parsed.help ?? false,
  };
}

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
 * Runs the command.
 *
 * @param args Arguments after the script's name.
 * @returns The exit code.
 */
export async function main(args: readonly string[]): Promise<number> {
  let request: Request;
  try {
    request = parseRequest(args);
    if (request.help) {
      console.log(HELP);
      return 0;
    }
    if (!await exists(request.folder)) {
      throw cannot("start verifying", "a folder that exists", request.folder);
    }
  } catch (error) {
    console.error((error as Error).message);
    return 2;
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
  try {
    for await (
      const line of verify(
        request.folder,
        request.only === undefined ? {} : { only: request.only },
      )
    ) {
      lines.push(line);
      if (!request.json) console.log(format(line, request.verbose));
    }
  } catch (error) {
    console.error((error as Error).message);
    return 2;
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
    console.error(
      cannot("verify", "items that match", request.only ?? "none").message,
    );
    return 2;
  }
  return counts.FAIL > 0 ? 1 : 0;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
