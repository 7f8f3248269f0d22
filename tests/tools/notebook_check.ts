/**
 * Type-checks and lints the code cells of notebooks, which `deno check` and
 * `deno lint` do not read, and sees whether `deno fmt` would change them.
 *
 * @module
 */
import { type Ended, listFiles, root, runDeno } from "./repository.ts";

/** A code cell as the notebook's reader counts it, from 1. */
export interface CodeCell {
  /** The cell's place among all cells, text ones included. */
  number: number;
  /** Its code. */
  source: string;
}

/** The code cells of a notebook. */
export function notebookCode(ipynb: string): CodeCell[] {
  const { cells } = JSON.parse(ipynb) as {
    cells: { cell_type: string; source: string | string[] }[];
  };
  return cells.flatMap(({ cell_type, source }, i) =>
    cell_type === "code"
      ? [{ number: i + 1, source: [source].flat().join("") }]
      : []
  );
}

/** All cells as one module, and where each line of it came from. */
export function asModule(
  cells: readonly CodeCell[],
): { text: string; places: string[] } {
  const lines: string[] = [];
  const places: string[] = [];
  for (const { number, source } of cells) {
    for (const [i, line] of source.split("\n").entries()) {
      lines.push(line);
      places.push(`cell ${number}, line ${i + 1}`);
    }
  }
  // Without an import or export the cells would be a script.
  lines.push("export {};", "");
  return { text: lines.join("\n"), places };
}

/** What is wrong with the cells of a notebook; empty if nothing is. */
export async function checkNotebook(path: string): Promise<string> {
  const { text, places } = asModule(
    notebookCode(await Deno.readTextFile(path)),
  );
  // Beside the notebook, so that its relative imports and deno.json hold.
  const slash = path.lastIndexOf("/") + 1;
  const name = `.check-${Deno.pid}-${path.slice(slash)}.ts`;
  const file = path.slice(0, slash) + name;
  await Deno.writeTextFile(file, text);
  try {
    const check = await runDeno(["check", "-q", file]);
    // A cell may throw on purpose; the next one runs all the same.
    const lint = await runDeno([
      "lint",
      "-q",
      "--rules-exclude=no-unreachable",
      file,
    ]);
    return [await unformatted(path), check, lint]
      .filter(({ code }) => code !== 0)
      .map(({ stdout, stderr }) => `${stdout}${stderr}`.trim())
      .join("\n\n")
      .replaceAll(
        /\S*\.check-\d+-(.+?\.ipynb)\.ts:(\d+)/g,
        (_, of, line) => `${of} ${places[Number(line) - 1] ?? "end"}`,
      );
  } finally {
    await Deno.remove(file);
  }
}

/**
 * `deno fmt --check` calls every notebook unformatted that it has not written
 * itself (Deno 2.9.6), so a copy is formatted and compared.
 */
async function unformatted(path: string): Promise<Ended> {
  const folder = await Deno.makeTempDir();
  const copy = `${folder}/copy.ipynb`;
  try {
    await Deno.copyFile(path, copy);
    const ended = await runDeno(["fmt", "-q", "--no-config", copy]);
    const same =
      await Deno.readTextFile(copy) === await Deno.readTextFile(path);
    if (ended.code !== 0 || same) return ended;
    return { code: 1, stdout: "not formatted: run deno fmt", stderr: "" };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

if (import.meta.main) {
  const paths = Deno.args.length > 0
    ? Deno.args
    : (await listFiles("notebooks", ".ipynb")).map((file) => `${root}/${file}`);
  let bad = 0;
  for (const path of paths) {
    const wrong = await checkNotebook(path);
    if (wrong === "") continue;
    bad++;
    console.error(`${path}\n${wrong}\n`);
  }
  console.log(`${paths.length} notebooks checked, ${bad} with errors`);
  Deno.exitCode = bad > 0 ? 1 : 0;
}
