import { assert, assertEquals, assertThrows } from "@std/assert";
import { runCommand } from "../../src/cli/command.ts";
import { experimentCommand } from "../../src/cli/experiment.ts";
import { fig5, type RegionPlan } from "../../src/experiments/fig5/run.ts";
import { decodePng } from "../../src/io/png.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

const regions = experimentCommand(fig5);
const planFor = (args: readonly string[]) =>
  regions.parse(args)!.plan as unknown as RegionPlan;

Deno.test("regions: the command line", () => {
  const plan = planFor([
    ...["--concepts", "kuro,momo,pogo", "--counts", "2,3"],
    ...["--train-steps", "5", "--arms", "plain.weight,switch"],
  ]);
  assertEquals(plan.counts, [2, 3]);
  assertEquals(plan.arms, ["plain.weight", "switch"]);
  assertEquals(plan.settings.train.steps, 5);
  assertThrows(
    () => regions.parse(["--concepts", "nobody"]),
    Error,
    "nobody",
  );
  assertThrows(() => regions.parse(["--sets", "0"]), Error, "--sets");
  assertEquals(plan.column, 64);
  assertEquals(planFor(["--column", "48"]).column, 48);
  assertEquals(regions.parse(["--help"]), undefined);
});

Deno.test("regions: report, page and contact sheet of a tiny world", async () => {
  const folder = await Deno.makeTempDir();
  const { log } = console;
  const said: string[] = [];
  const gradient = ["plain.gradient", "regional.gradient"];
  console.log = (text) => said.push(String(text));
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const code = await runCommand(regions, [
      ...["--quick", "--model", model, "--clip", clip],
      ...["--out", `${folder}/out`, "--backend", "wasm", "--workers", "0"],
      ...["--train-steps", "2", "--steps", "2"],
      ...["--layers", "attention", "--rank", "1"],
      ...["--arms", `real,plain.weight,${gradient.join()},switch`],
      ...["--scales", "1.5"],
    ]);
    assertEquals(code, 0);
    const read = (name: string) => Deno.readTextFile(`${folder}/out/${name}`);
    const report = JSON.parse(await read("regions.json"));
    assertEquals(report.table.length, 5);
    const markdown = await read("regions.md");
    assert(markdown.includes("| regions, gradient fusion"), markdown);
    assert(markdown.includes("LoRA Switch"));
    assert(markdown.includes("masked alignment ↑ |"), markdown);
    assert(markdown.includes("replaced by another ↓ | another seen there ↓"));
    assert(markdown.includes("an identity in every region ↑"));
    assert(markdown.includes("| 95 % interval (t) |"));
    assert(markdown.includes("## Cross-attention sites at which regions act"));
    assert(markdown.includes("4 of 4"));
    // A random CLIP is no evaluator, and the report says so first.
    assert(markdown.split("\n")[2].startsWith("THE EVALUATOR"), markdown);
    assertEquals(report.evaluator.failures.length > 0, true);
    assertEquals(report.comparisons[0].low, null);
    const html = await read("regions.html");
    assert(html.includes("plotly") && html.includes("data:image/png"));
    assert(html.indexOf("THE EVALUATOR") < html.indexOf("<table"));
    const sheet = decodePng(
      await Deno.readFile(`${folder}/out/regions-2.png`),
    );
    // An arm per row, two again at 96 pixels; one scene at twice its size.
    assert(sheet.height > 7 * 128 && sheet.height < 7 * 192);
    assert(sheet.width > 256 && sheet.width < 512);
    // The paper's figure has three arms.
    const figure = decodePng(await Deno.readFile(`${folder}/out/fig5.png`));
    assert(figure.width > 3 * 128);
    assert(html.includes("(Fig 5)") && html.includes("96 pixels high"));
    assert(said.join("\n").includes("identity per region"));
  } finally {
    console.log = log;
    await Deno.remove(folder, { recursive: true });
  }
});
