import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { experimentCommand } from "../../src/cli/experiment.ts";
import type { AblationPlan } from "../../src/experiments/table2/draw.ts";
import { EXPERIMENTS } from "../../src/experiments/registry.ts";

const command = experimentCommand(
  EXPERIMENTS.find(({ name }) => name === "ablation")!,
);
const parseAblation = (args: readonly string[]) => {
  const request = command.parse(args)!;
  return { ...request, plan: request.plan as unknown as AblationPlan };
};

Deno.test("the scales", () => {
  const quick = parseAblation(["--quick"]).plan;
  assertEquals([quick.concepts.length, quick.prompts, quick.scale], [
    2,
    2,
    "quick",
  ]);
  const plain = parseAblation([]).plan;
  assertEquals(
    [plain.concepts.length, plain.prompts, plain.seeds, plain.scale],
    [
      5,
      5,
      [0],
      "default",
    ],
  );
  const full = parseAblation(["--full"]).plan;
  assertEquals([full.concepts.length, full.seeds, full.scale], [
    12,
    [0, 1, 2],
    "full",
  ]);
  assertEquals(new Set(full.concepts).size, 12);
});

Deno.test("options reach the settings and make the scale custom", () => {
  const { plan: options, lab: { out, workers, store } } = parseAblation([
    "--concepts=momo,kuro",
    "--n=6",
    "--seeds=3,4",
    "--steps=9",
    "--guidance=2.5",
    "--rank=2",
    "--method=edlora",
    "--fusion=gradient",
    "--out=/tmp/x",
    "--workers=0",
  ]);
  assertEquals(options.concepts, ["momo", "kuro"]);
  assertEquals(options.prompts, 6);
  assertEquals(options.seeds, [3, 4]);
  assertEquals(options.settings.sampling.steps, 9);
  assertEquals(options.settings.sampling.guidance, 2.5);
  assertEquals(options.settings.rank, 2);
  assertEquals(options.embeddings, ["edlora"]);
  assertEquals(options.fusions, ["gradient"]);
  assertEquals(store, "/tmp/x/cache");
  assertEquals([options.scale, out, workers], ["custom", "/tmp/x", 0]);
  const shared = parseAblation([
    "--full",
    "--cache=/tmp/c",
    "--partial",
    "--concepts=ulla,finn",
  ]);
  assertEquals([shared.lab.store, shared.plan.partial, shared.dryRun], [
    "/tmp/c",
    true,
    false,
  ]);
  assertEquals(shared.plan.concepts, ["ulla", "finn"]);
  for (const changed of ["--preset=official", "--model=m"]) {
    assertEquals(parseAblation(["--full", changed]).plan.scale, "custom");
  }
  // A quick run stays one that allows no conclusion, whatever is changed.
  assertEquals(parseAblation(["--quick", "--n=5"]).plan.scale, "quick");
});

for (
  const [args, message] of [
    [["--concepts=nobody"], "kuro, lila"],
    [["--concepts=0"], "1 to 12"],
    [["--n=21"], "1 to 20"],
    [["--n="], "a value for --n"],
    [["--seeds=a"], "a whole number"],
    [["--method=dora"], "lora, ed-lora"],
    [["--fusion=sum"], "weight, gradient"],
    [["--preset=mine"], "ablation, official"],
    [["--rank=1.5"], "whole number"],
    [["--backend=cuda"], "webgpu, wasm, cpu"],
    [["--what"], "known option"],
    [["--quick", "--full"], "both"],
    [["--fresh", "--dry-run"], "--fresh or --dry-run"],
    [["--fresh", "--partial"], "--fresh or --partial"],
  ] as const
) {
  Deno.test(`refused: ${args.join(" ")}`, () => {
    assertThrows(() => parseAblation(args), Error, message);
  });
}

Deno.test("missing weights and unwritable folders end it before work", async () => {
  await assertRejects(
    () => command.run(command.parse(["--model", "/nowhere", "--out", "/tmp"])!),
    Error,
    "/nowhere",
  );
  const file = await Deno.makeTempFile();
  await assertRejects(
    () =>
      command.run(
        command.parse([
          "--model",
          "/tmp",
          "--clip",
          "/tmp",
          "--out",
          `${file}/x`,
        ])!,
      ),
    Error,
    "Cannot write into",
  );
  await Deno.remove(file);
});
