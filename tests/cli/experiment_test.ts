import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { evaluators } from "../../src/cli/evaluators.ts";
import {
  EXPERIMENT_COMMANDS,
  experimentCommand,
  listed,
  main,
} from "../../src/cli/experiment.ts";
import { frames } from "../../src/cli/frames.ts";
import type { Plan } from "../../src/experiments/experiment.ts";
import { overfit } from "../../src/experiments/overfit.ts";
import { SWEEPS } from "../../src/experiments/sweeps.ts";
import { table1 } from "../../src/experiments/table1.ts";
import { readJson } from "../../src/io/files.ts";
import { escapeHtml } from "../../src/report/text.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

const sweeps = SWEEPS.map((one) => experimentCommand(one));
const sweep = (name: string) => sweeps.find((one) => one.name === name)!;
const parse = (name: string, args: readonly string[]) => {
  const { lab, plan } = sweep(name).parse(args)!;
  return { lab, plan: plan as Plan<typeof SWEEPS[0]["options"]> };
};

Deno.test("sweeps: defaults and options", () => {
  const plain = parse("ridge", []);
  assertEquals(plain.plan.concepts, ["jin", "bobo", "fifi", "dash"]);
  assertEquals([plain.lab.out, plain.plan.prompts, plain.plan.seeds], [
    "out/ridge",
    20,
    [0],
  ]);
  assertEquals(parse("rank", []).plan.concepts.length, 12);
  const { plan: options, lab } = parse("lambda", [
    "--values=0.1,1",
    "--concepts=jin",
    "--distractors=niko,kuro",
    "--method=ed-lora",
    "--train-steps=7",
    "--rank=2",
    "--workers=0",
    "--variants=v.json",
    "--out=o",
  ]);
  assertEquals(options.values, [0.1, 1]);
  assertEquals([options.concepts, options.distractors], [["jin"], [
    "niko",
    "kuro",
  ]]);
  assertEquals(options.embeddings, ["edlora"]);
  assertEquals([options.settings.train.steps, options.settings.rank], [7, 2]);
  assertEquals([lab.workers, options.variants, lab.store], [
    0,
    "v.json",
    "o/cache",
  ]);
  // A list of layers is swept; the setting stays the preset's.
  const { plan: layered } = parse("rank", ["--layers=attention,linear"]);
  assertEquals(layered.layers, ["attention", "linear"]);
  assertEquals(layered.settings.layers, "all");
  // A quick run trains for less, unless it is told for how long.
  const stepsOf = (...args: readonly string[]) =>
    parse("rank", args).plan.settings.train.steps!;
  assert(stepsOf("--quick") < stepsOf());
  assertEquals(stepsOf("--quick", "--train-steps=7"), 7);
  for (const { parse, help, name } of sweeps) {
    assertEquals(parse(["--help"]), undefined);
    assertEquals(help.startsWith(`deno task experiment ${name} `), true);
  }
});

for (
  const [name, args, message] of [
    ["lambda", ["--values=0.1,x"], "--values a number"],
    ["lambda", ["--concepts=nobody"], "Cannot find a concept"],
    ["lambda", ["--distractors=nobody"], "Cannot find a concept"],
    ["ridge", ["--method=dreambooth"], "lora, ed-lora"],
    ["ridge", ["--seeds=0,-1"], "--seeds a whole number from 0, got -1"],
    ["ridge", ["--n=21"], "1 to 20"],
    ["tune", [], "--variants"],
    ["tune", ["--values=1"], "known option"],
    ["rank", ["--rank=3"], "known option"],
    ["rank", ["--train-steps=0"], "--train-steps a whole number from 1"],
  ] as const
) {
  Deno.test(`refused: experiment ${name} ${args.join(" ")}`, () => {
    assertThrows(() => sweep(name).parse([...args]), Error, message);
  });
}

Deno.test("files of a sweep are checked before work starts", async () => {
  const file = await Deno.makeTempFile({ suffix: ".json" });
  try {
    for (
      const [name, option, content, message] of [
        ["tune", "variants", { A: { stpes: 3 } }, "A: Unrecognized key"],
        ["tune", "variants", { A: { steps: 0.5 } }, "A.steps"],
        ["ridge", "templates", ["photo of a"], "{}"],
        ["count", "templates", [], "fits its schema"],
      ] as const
    ) {
      await Deno.writeTextFile(file, JSON.stringify(content));
      const { parse, run } = sweep(name);
      await assertRejects(
        () => run(parse([`--${option}=${file}`])!),
        Error,
        message,
      );
    }
  } finally {
    await Deno.remove(file);
  }
});

Deno.test("frames and evaluators read their options", () => {
  assertEquals(frames.parse(["--out=o"]), { out: "o" });
  const { clips, lab } = evaluators.parse(["--out=o", "--clips=a,b"])!;
  assertEquals([clips, lab.store], [["a", "b"], "o/cache"]);
  assertThrows(() => evaluators.parse(["--n=1"]), Error, "known option");
});

Deno.test("an experiment that does not exist is bad usage", async () => {
  assertEquals(await main(["nothing"]), 2);
  assertEquals(await main(["ridge", "--rank=0"]), 2);
  assertEquals(await main(["ridge", "--values=-1"]), 2);
  assertEquals(await main(["count", "--values=13"]), 2);
  assertEquals(await main(["-h"]), 0);
});

Deno.test("the methods of an experiment have their names, however written", () => {
  for (const written of ["edlora", "ed-lora", "ED_LoRA"]) {
    const { plan } = parse("ridge", [`--method=${written}`]);
    assertEquals(plan.embeddings, ["edlora"]);
  }
});

Deno.test("help of every experiment fits a terminal and has the defaults", () => {
  for (const { help, name, options } of EXPERIMENT_COMMANDS) {
    for (const line of help.split("\n")) {
      assert(line.length <= 80, `${name}: ${line}`);
    }
    for (const field of ["rank", "trainSteps", "steps", "guidance"] as const) {
      if (!options?.[field]) continue;
      assert(options[field].otherwise ?? options[field].default, field);
    }
  }
});

Deno.test("an experiment has the names of the paper's tables and figures, too", async () => {
  for (const name of ["table2", "table3", "fig3", "fig5", "fig6", "scaling"]) {
    assertEquals(await main([name, "--help"]), 0);
  }
});

Deno.test("a setting of all experiments is a list of one where they have a list", () => {
  const given = { layers: "linear", trainSteps: 3 } as const;
  assertEquals(listed(table1, given), given);
  const many = listed(overfit, given);
  assertEquals(many, { layers: ["linear"], trainSteps: 3 });
  assertEquals(listed(overfit, {}), {});
});

Deno.test("all: reports, every claim and seeds in one page; settings reach lists", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const out = `${folder}/out`;
    const code = await main([
      ...["all", "--quick", "--only", "overfit,noise-offset"],
      ...["--layers", "linear", "--rank", "1"],
      ...["--train-steps", "1", "--steps", "1"],
      ...["--model", model, "--clip", clip],
      ...["--backend", "wasm", "--workers", "0", "--out", out],
    ]);
    assertEquals(code, 0);
    const { rows } = await readJson<
      { rows: { arm: { layers: string } | null }[] }
    >(`${out}/overfit/overfit.json`);
    assertEquals(rows.map(({ arm }) => arm?.layers), [undefined, "linear"]);
    const { settings, comparisons } = await readJson<
      { settings: { layers: string }; comparisons: { claim: string }[] }
    >(`${out}/noise-offset/noise-offset.json`);
    assertEquals(settings.layers, "linear");
    const page = await Deno.readTextFile(`${out}/index.html`);
    for (
      const part of [
        'href="overfit/overfit.html"',
        'href="noise-offset/noise-offset.html"',
        "Every claim",
        ...comparisons.map(({ claim }) => escapeHtml(claim)),
      ]
    ) assertStringIncludes(page, part);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
