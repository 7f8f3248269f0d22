import { assertEquals, assertStringIncludes } from "@std/assert";
import { asModule, checkNotebook, notebookCode } from "./notebook_check.ts";
import { type Cell, runNotebook } from "./notebook_run.ts";

const folder = new URL("./fixtures/", import.meta.url).pathname;
const fiveCells = `${folder}five_cells.ipynb`;

/** Writes a notebook of code cells, gives it to the test and removes it. */
async function withNotebook(
  sources: readonly string[],
  fn: (path: string) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir();
  const cells = sources.map((source) => ({
    cell_type: "code",
    execution_count: null,
    metadata: {},
    outputs: [],
    source,
  }));
  const path = `${directory}/made.ipynb`;
  try {
    await Deno.writeTextFile(path, JSON.stringify({ cells, metadata: {} }));
    await fn(path);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

function text(cell: Cell, name: string): string {
  const streams = (cell.outputs ?? []) as { name?: string; text?: string[] }[];
  return streams.filter((output) => output.name === name)
    .flatMap((output) => output.text ?? []).join("");
}

Deno.test("a notebook runs in its folder and every output arrives", async () => {
  const { passed, failed, errors, notebook } = await runNotebook(
    fiveCells,
    60_000,
  );
  assertEquals({ passed, failed, errors }, {
    passed: 5,
    failed: 0,
    errors: [],
  });
  const [words, first, second, third, fourth, fifth] = notebook.cells;
  assertEquals(words.outputs, undefined);
  const numbers = Array.from({ length: 50 }, (_, i) => `${i}\n`);
  assertEquals(first.outputs, [{
    output_type: "stream",
    name: "stdout",
    text: ["equal: true\n", ...numbers],
  }]);
  assertEquals(
    notebook.cells.flatMap((cell) => cell.execution_count ?? []),
    [1, 2, 3, 4, 5],
  );
  // What an earlier cell left running prints into the one that runs now.
  assertEquals(text(second, "stdout"), "late\n");
  assertEquals(text(second, "stderr"), "to stderr\n");
  // The fourth cell has updated the display of the second.
  assertEquals(second.outputs?.at(-1), {
    output_type: "display_data",
    data: { "text/plain": ["100 %"] },
    metadata: {},
  });
  const error = third.outputs?.[0] as Record<string, unknown>;
  assertEquals(error.output_type, "error");
  assertEquals(error.ename, "RangeError");
  assertEquals(error.evalue, "out of range");
  assertEquals(fourth.outputs, [{
    output_type: "display_data",
    data: {
      "text/html": ["<b>1</b>\n", "<i>2</i>"],
      "text/plain": ["1\n", "2"],
      "application/json": { one: 1 },
    },
    metadata: {},
  }]);
  assertEquals(fifth.outputs, [{
    output_type: "execute_result",
    data: { "text/markdown": ["**figure**"] },
    metadata: {},
    execution_count: 5,
  }]);
});

Deno.test("no output is lost or moves to a neighbour in 60 cells", async () => {
  const sources = Array.from(
    { length: 60 },
    (_, i) => `for (const j of "abcd") console.log(${i} + j);`,
  );
  await withNotebook(sources, async (path) => {
    const { notebook } = await runNotebook(path, 60_000);
    assertEquals(
      notebook.cells.map((cell) => text(cell, "stdout")),
      sources.map((_, i) => `${i}a\n${i}b\n${i}c\n${i}d\n`),
    );
  });
});

Deno.test("a throw, a syntax error and a missing throw fail; others run", async () => {
  const sources = [
    "throw new Error('mine');",
    "const = 3;",
    "console.log('still here');",
  ];
  await withNotebook(sources, async (path) => {
    const { passed, failed, errors, notebook } = await runNotebook(
      path,
      60_000,
    );
    assertEquals([passed, failed], [1, 2]);
    assertStringIncludes(errors[0], "cell 1: Error: mine");
    assertStringIncludes(errors[1], "cell 2: did not run");
    assertEquals(text(notebook.cells[2], "stdout"), "still here\n");
    notebook.cells[2].metadata.tags = ["raises-exception"];
    await Deno.writeTextFile(path, JSON.stringify(notebook));
    const again = await runNotebook(path, 60_000);
    assertEquals([again.passed, again.failed], [0, 3]);
    assertStringIncludes(again.errors[2], "was to throw and did not");
  });
});

Deno.test("a cell that hangs is given up, the rest is not reached", async () => {
  const sources = ["await new Promise(() => {});", "1"];
  await withNotebook(sources, async (path) => {
    const { passed, failed, errors } = await runNotebook(path, 1_500);
    assertEquals([passed, failed], [0, 2]);
    assertEquals(errors, [
      "cell 1: no answer within 1.5 s",
      "cell 2: not reached",
    ]);
  });
});

Deno.test("a kernel that dies is reported", async () => {
  await withNotebook(["Deno.exit(3);", "1"], async (path) => {
    const { failed, errors } = await runNotebook(path, 60_000);
    assertEquals(failed, 2);
    assertStringIncludes(errors[0], "cell 1: the kernel");
  });
});

Deno.test("notebookCode keeps the code, asModule knows where it was", () => {
  const cells = notebookCode(JSON.stringify({
    cells: [
      { cell_type: "markdown", source: "# A" },
      { cell_type: "code", source: ["const a = 1;\n", "a;"] },
      { cell_type: "code", source: "const b = a;" },
    ],
  }));
  assertEquals(cells, [
    { number: 2, source: "const a = 1;\na;" },
    { number: 3, source: "const b = a;" },
  ]);
  const { text, places } = asModule(cells);
  assertEquals(text, "const a = 1;\na;\nconst b = a;\nexport {};\n");
  assertEquals(places, ["cell 2, line 1", "cell 2, line 2", "cell 3, line 1"]);
});

Deno.test("checkNotebook sees format, and names the cell of type and lint errors", async () => {
  assertEquals(await checkNotebook(fiveCells), "");
  const sources = [
    "const a: number = 1;",
    "\nconst b: string = a;\nvar c = b;\nc;",
  ];
  await withNotebook(sources, async (path) => {
    const wrong = await checkNotebook(path);
    assertStringIncludes(wrong, "TS2322");
    assertStringIncludes(wrong, "made.ipynb cell 2, line 2");
    assertStringIncludes(wrong, "no-var");
    assertStringIncludes(wrong, "made.ipynb cell 2, line 3");
  });
  await withNotebook(["const   a = 1;\na;"], async (path) => {
    const notebook = JSON.parse(await Deno.readTextFile(path));
    notebook.metadata.language_info = { name: "typescript" };
    await Deno.writeTextFile(path, JSON.stringify(notebook, null, 1) + "\n");
    assertEquals(await checkNotebook(path), "not formatted: run deno fmt");
  });
});
