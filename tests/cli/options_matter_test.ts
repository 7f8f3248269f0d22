/**
 * Every option of a command changes what comes out, or the run says that it
 * cannot here; see option_pairs.ts, and tests/tools/option_table.ts prints the
 * table.
 */
import { assert, assertRejects } from "@std/assert";
import { command } from "../../src/cli/command.ts";
import { flag, optionTable, text } from "../../src/cli/options.ts";
import { runDeno } from "../tools/repository.ts";
import { checkOptions, type OptionRows } from "./option_pairs.ts";
import {
  completionsRows,
  convertRows,
  evaluateRows,
  fuseRows,
  inspectRows,
  memoryRows,
  sampleRows,
  trainRows,
} from "./option_rows.ts";
import { writeOptionWorld } from "./option_world.ts";

Deno.test("every option of every command matters", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    const world = await writeOptionWorld(folder);
    for (
      const rows of [
        trainRows(world),
        fuseRows(world),
        sampleRows(world),
        evaluateRows(world),
        convertRows(world),
        inspectRows(world),
        memoryRows(world),
        completionsRows(world),
      ]
    ) {
      await t.step(rows.command.name, (t) => checkOptions(rows, t));
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("an option without a row, or without an effect, is found", async () => {
  const folder = await Deno.makeTempDir();
  const options = optionTable({
    word: { type: text, default: "a", help: "what is said" },
    loud: { type: flag, help: "does nothing" },
  });
  const hello = command({
    name: "hello",
    summary: "greet",
    usage: "hello",
    about: "Greets.",
    options,
    request: (values) => values,
    run: ({ word, loud }) => {
      console.log(word);
      if (loud && word === "b") console.error("--loud changes nothing");
      return Promise.resolve();
    },
  });
  // Each step runs at once; the first that fails ends it.
  const t = {
    step: async (_name: string, fn: () => Promise<void>) => {
      await fn();
      return true;
    },
  } as unknown as Deno.TestContext;
  const check = (pairs: OptionRows["pairs"]) =>
    checkOptions({ command: hello, base: {}, out: `${folder}/out`, pairs }, t);
  const word = { add: { "--word": "c" } };
  const loud = { add: { "--loud": true } } as const;
  const said = { ...loud, both: { "--word": "b" }, says: /changes nothing/ };
  try {
    await check({ word, loud: said });
    await assertRejects(() => check({ word }), Error, "rows of the table");
    await assertRejects(() => check({ word, loud }), Error, "changes nothing");
    await assertRejects(
      () => check({ word, loud: { ...loud, says: /loud/ } }),
      Error,
      "it says:",
    );
    await assertRejects(
      () => check({ word, loud: { ...loud, needs: /loud/ } }),
      Error,
      "is not needed",
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the table of options can be printed", async () => {
  const { code, stdout, stderr } = await runDeno([
    ...["run", "-q", "-A", "--no-check", "tests/tools/option_table.ts"],
  ]);
  assert(code === 0, stderr);
  for (const name of ["train", "ablation", "pretrain", "verify"]) {
    assert(stdout.includes(`### ${name}\n`), name);
  }
});
