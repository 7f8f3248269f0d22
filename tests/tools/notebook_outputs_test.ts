import { assert, assertEquals } from "@std/assert";
import { fingerprint } from "../../src/experiments/stored.ts";
import type { Cell, Notebook } from "./notebook_run.ts";
import type { Bundle } from "./kernel.ts";
import { listFiles, root } from "./repository.ts";

/** An output as a notebook stores it. */
interface Stored {
  readonly output_type: string;
  readonly text?: string | readonly string[];
  readonly data?: Bundle;
}

/** What a reader is to see: printed lines, tables, figures, pictures. */
const SHOWS =
  /^\s*(show(Figure|Table|Picture)\(|console\.log\(|shown\(|\w+ \? show)/m;

/** A line of `fingerprint`: a path and the start of a hash. */
const FINGERPRINT = /^((?:results|models)\/\S+) ([0-9a-f]{12})\b/gm;

const outputsOf = ({ outputs = [] }: Cell) => outputs as readonly Stored[];
const textOf = ({ text = "" }: Stored) => [text].flat().join("");

/** What is wrong with the outputs of a notebook; empty if nothing is. */
async function faultsOf(
  { cells }: Notebook,
  now: (path: string) => Promise<string>,
): Promise<string[]> {
  const faults: string[] = [];
  const all = cells.flatMap(outputsOf);
  for (const [i, cell] of cells.entries()) {
    if (cell.cell_type !== "code") continue;
    const source = [cell.source].flat().join("");
    if (SHOWS.test(source) && outputsOf(cell).length === 0) {
      faults.push(`cell ${i + 1} shows nothing`);
    }
    const fails = outputsOf(cell).some((one) => one.output_type === "error");
    if (fails && !cell.metadata.tags?.includes("raises-exception")) {
      faults.push(`cell ${i + 1} failed`);
    }
  }
  const hasFigure = all.some(({ data = {} }) =>
    "application/vnd.plotly.v1+json" in data && "image/png" in data
  );
  if (!hasFigure) faults.push("no figure with plotly and PNG");
  const found = [...all.map(textOf).join("\n").matchAll(FINGERPRINT)];
  if (found.length === 0) faults.push("no fingerprint of what it shows");
  for (const [line, path] of found) {
    const is = await now(path);
    if (line !== is) faults.push(`older than ${path}: ${line}, now ${is}`);
  }
  return faults;
}

const code = (source: string, outputs: readonly Stored[]): Cell => ({
  cell_type: "code",
  metadata: {},
  source,
  outputs: [...outputs],
});
const figure: Stored = {
  output_type: "execute_result",
  data: { "application/vnd.plotly.v1+json": {}, "image/png": "" },
};
const says = (text: string): Stored => ({ output_type: "stream", text });

Deno.test("an output that is missing, failed or old is a fault", async () => {
  const line = "results/a.json 0123456789ab";
  const now = () => Promise.resolve(line);
  const faults = (...cells: Cell[]) => faultsOf({ cells, metadata: {} }, now);
  const good = [
    code("console.log(await fingerprint(a));", [says(`${line}\n`)]),
    code("const b = 1;", []),
    code("showFigure(b);", [figure]),
  ];
  assertEquals(await faults(...good), []);
  assertEquals(await faults(...good, code("showTable(b);", [])), [
    "cell 4 shows nothing",
  ]);
  const error: Stored = { output_type: "error" };
  assertEquals(await faults(...good, code("b;", [error])), ["cell 4 failed"]);
  assertEquals(await faults(good[0]), ["no figure with plotly and PNG"]);
  assertEquals(await faults(good[2]), ["no fingerprint of what it shows"]);
  const old = code("x;", [says("results/a.json ffffffffffff")]);
  const [fault] = await faults(...good, old);
  assert(fault.startsWith("older than results/a.json"), fault);
});

Deno.test("committed notebooks have their outputs, as new as the results", async () => {
  const files = await listFiles("notebooks", ".ipynb");
  assert(files.length > 0);
  const known = new Map<string, Promise<string>>();
  const now = (path: string) => {
    const found = known.get(path) ?? fingerprint(`${root}/${path}`)
      .then((line) => line.slice(line.indexOf(path)));
    known.set(path, found);
    return found;
  };
  const faults: string[] = [];
  for (const file of files) {
    const text = await Deno.readTextFile(`${root}/${file}`);
    const own = await faultsOf(JSON.parse(text), now);
    faults.push(...own.map((fault) => `${file}: ${fault}`));
  }
  assertEquals(faults, []);
});
