import { assert, assertEquals } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { ON_ONE_CORE, root } from "../tools/repository.ts";

/** Runs the command; kills it as soon as a line of its progress matches. */
async function run(args: string[], killAt?: RegExp): Promise<boolean> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-q",
      "-P=local",
      ON_ONE_CORE,
      "src/cli/experiment.ts",
      "ablation",
      ...args,
    ],
    cwd: root,
    stdout: "null",
    stderr: "piped",
  }).spawn();
  let text = "";
  let killed = false;
  for await (const chunk of child.stderr.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    if (killAt?.test(text) && !killed) {
      killed = true;
      // In the middle of the stage, not at its start.
      await new Promise((resolve) => setTimeout(resolve, 300));
      child.kill("SIGKILL");
    }
  }
  const { success } = await child.status;
  assert(killed || success, text);
  return killed;
}

async function numbers(out: string): Promise<unknown> {
  const report = JSON.parse(await Deno.readTextFile(`${out}/ablation.json`));
  // Times differ, and the date.
  return JSON.parse(JSON.stringify(
    { ...report, created: "", timings: {} },
    (key, value) =>
      ["seconds", "fusionSeconds", "losses"].includes(key) ? undefined : value,
  ));
}

Deno.test("kill -9 in training and in drawing: the rerun ends in the same numbers", async () => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const args = (out: string) => [
      "--quick",
      "--n=1",
      "--method=edlora",
      "--fusion=weight",
      "--backend=wasm",
      "--workers=0",
      "--layers=attention",
      "--rank=1",
      "--train-steps=30",
      "--steps=2",
      `--model=${model}`,
      `--clip=${clip}`,
      `--out=${folder}/${out}`,
    ];
    await run(args("whole"));
    assert(await run(args("killed"), /training concepts: /));
    assert(await run(args("killed"), /drawing: /));
    await run(args("killed"));
    assertEquals(
      await numbers(`${folder}/killed`),
      await numbers(`${folder}/whole`),
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
