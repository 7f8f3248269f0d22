/**
 * `deno task notebooks`: executes notebooks in their own folders and counts
 * the cells. Options: `--write` keeps the outputs in the files, `--limit N`
 * seconds a cell (600). A cell tagged `raises-exception` has to throw.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import {
  type Executed,
  KernelLost,
  type Output,
  startKernel,
} from "./kernel.ts";
import { helped } from "./help.ts";
import { listFiles, root } from "./repository.ts";

/** The parts of a notebook that are read or written here (nbformat 4). */
export interface Notebook {
  /** Text and code in order. */
  cells: Cell[];
  /** Kernel and language. */
  metadata: Record<string, unknown>;
}

/** One cell of a notebook. */
export interface Cell {
  /** `"code"`, `"markdown"` or `"raw"`. */
  cell_type: string;
  /** The text, whole or in lines. */
  source: string | string[];
  /** Tags among others. */
  metadata: { tags?: string[] };
  /** Of a code cell: what it showed. */
  outputs?: unknown[];
  /** Of a code cell: the number in its brackets. */
  execution_count?: number | null;
}

/** What running a notebook came to. */
export interface Report {
  /** Cells that did as they should. */
  passed: number;
  /** Cells that did not, or were not reached. */
  failed: number;
  /** Why, a line or more each. */
  errors: string[];
  /** The notebook with the new outputs. */
  notebook: Notebook;
}

/**
 * Executes the code cells of a notebook in order, in one kernel.
 *
 * @param path The .ipynb file; the kernel runs in its folder.
 * @param limit Milliseconds a cell may take.
 */
export async function runNotebook(
  path: string,
  limit: number,
): Promise<Report> {
  const notebook: Notebook = JSON.parse(await Deno.readTextFile(path));
  const report: Report = { passed: 0, failed: 0, errors: [], notebook };
  const kernel = await startKernel(path.slice(0, path.lastIndexOf("/")) || ".");
  let dead = false;
  try {
    for (const [i, cell] of notebook.cells.entries()) {
      if (cell.cell_type !== "code") continue;
      const code = [cell.source].flat().join("");
      cell.outputs = [];
      cell.execution_count = null;
      if (code.trim() === "") continue;
      const fail = (why: string) => {
        report.failed++;
        report.errors.push(`cell ${i + 1}: ${why}`);
      };
      if (dead) {
        fail("not reached");
        continue;
      }
      let executed: Executed;
      try {
        executed = await kernel.execute(code, limit);
      } catch (error) {
        if (!(error instanceof KernelLost)) throw error;
        fail(error.message);
        dead = true;
        continue;
      }
      cell.execution_count = executed.count;
      cell.outputs = executed.outputs;
      const shouldThrow = cell.metadata.tags?.includes("raises-exception") ??
        false;
      if (executed.ok !== shouldThrow) report.passed++;
      else if (shouldThrow) fail("was to throw and did not");
      else fail(reason(executed));
    }
  } finally {
    await kernel.close();
  }
  // Only now: a later cell may have updated an earlier one's display.
  for (const cell of notebook.cells) {
    cell.outputs = cell.outputs?.map((output) => asStored(output as Output));
  }
  return report;
}

function reason({ outputs }: Executed): string {
  const errors = outputs.flatMap((output) =>
    output.output_type === "error"
      ? [[`${output.ename}: ${output.evalue}`, ...output.traceback].join("\n")]
      : []
  );
  if (errors.length > 0) return errors.join("\n");
  return "did not run: a syntax error or a missing package; " +
    "`deno task ok` type-checks the cells";
}

/** Notebooks keep text as a list of lines, so that changes can be read. */
function asStored(output: Output): unknown {
  if (output.output_type === "stream") {
    return { ...output, text: lines(output.text) };
  }
  if (output.output_type === "error") return output;
  const data = Object.entries(output.data).map(([mime, value]) => {
    const text = typeof value === "string" &&
      (mime.startsWith("text/") || mime === "image/svg+xml");
    return [mime, text ? lines(value) : value];
  });
  return { ...output, data: Object.fromEntries(data) };
}

function lines(text: string): string[] {
  return text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
}

const HELP = `
deno task notebooks [FILE.ipynb ...] [options]

Runs notebooks (default: all) on the Deno kernel and counts the cells that ran.

  --write      keep the outputs in the notebooks
  --limit N    seconds for one cell (default 600)
  --help       this text
`;

if (import.meta.main && !helped(HELP)) {
  const refuse = (expected: string, got: string): never => {
    console.error(`Cannot run notebooks: expected ${expected}, got ${got}`);
    Deno.exit(2);
  };
  const options = parseArgs(Deno.args, {
    boolean: ["write"],
    string: ["limit"],
    default: { limit: "600" },
    unknown: (arg, key) =>
      key === undefined || key === "limit" ||
      refuse("--write or --limit", arg),
  });
  const limit = Number(options.limit || NaN);
  if (!(limit > 0)) refuse("--limit > 0", options.limit || "none");
  const named = options._.map(String);
  for (const path of named) {
    const file = path.endsWith(".ipynb") &&
      await Deno.stat(path).then(({ isFile }) => isFile, () => false);
    if (!file) refuse("the path of a notebook (.ipynb)", path);
  }
  const found = named.length > 0
    ? await Promise.all(named.map((path) => Deno.realPath(path)))
    : (await listFiles("notebooks", ".ipynb")).map((file) => `${root}/${file}`);
  let passed = 0;
  let failed = 0;
  for (const path of found) {
    const start = performance.now();
    const report = await runNotebook(path, limit * 1000);
    passed += report.passed;
    failed += report.failed;
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    console.log(
      `${path.replace(`${root}/`, "")}: ${report.passed} cells ran, ` +
        `${report.failed} failed (${seconds} s)`,
    );
    for (const error of report.errors) console.error(`  ${error}`);
    if (options.write) {
      const temporary = `${path}.tmp`;
      const text = JSON.stringify(report.notebook, null, 1);
      await Deno.writeTextFile(temporary, `${text}\n`);
      await Deno.rename(temporary, path);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  Deno.exitCode = failed > 0 ? 1 : 0;
}
