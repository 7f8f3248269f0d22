import { assert, assertEquals, assertMatch } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { exists } from "../../src/io/files.ts";
import { encodePng } from "../../src/io/png.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { ON_ONE_CORE, root } from "../tools/repository.ts";

/** How a process ended, and what it said. */
interface Ended {
  readonly code: number;
  readonly said: string;
}

/** Runs a command; presses Ctrl-C as soon as a condition holds. */
async function run(
  args: readonly string[],
  stopWhen?: (said: string) => Promise<boolean>,
): Promise<Ended> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", "-P=online", ON_ONE_CORE, "src/cli/main.ts", ...args],
    ...{ cwd: root, stdout: "null", stderr: "piped" },
  }).spawn();
  let [said, over] = ["", false];
  const listening = (async () => {
    for await (
      const text of child.stderr.pipeThrough(new TextDecoderStream())
    ) said += text;
    over = true;
  })();
  while (stopWhen && !over && !await stopWhen(said)) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  if (stopWhen && !over) child.kill("SIGINT");
  const { code } = await child.status;
  await listening;
  return { code, said };
}

Deno.test("Ctrl-C in train says what is kept, and the same command goes on there", async () => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  try {
    const { model } = await writeTinyWorld(folder);
    await Deno.mkdir(`${folder}/pictures`);
    const [width, height, channels] = [64, 64, 3];
    const data = Uint8Array.from(
      { length: width * height * channels },
      (_, i) => i * 7 % 256,
    );
    await Deno.writeFile(
      `${folder}/pictures/a.png`,
      encodePng({ width, height, channels, data }),
    );
    const train = (out: string) => [
      ...["train", "--name", "rex", "--class", "fox", "--model", model],
      ...["--images", `${folder}/pictures`, "--steps", "130", "--batch", "1"],
      ...["--targets", "cross-attention-kv", "--backend", "wasm"],
      ...["--out", `${folder}/${out}.safetensors`],
    ];
    const state = `${folder}/stopped.state.safetensors`;

    const early = await run(
      train("stopped"),
      (said) => Promise.resolve(/training/.test(said)),
    );
    assertEquals(early.code, 130, early.said);
    assertMatch(early.said, /stopped before step 50: nothing is kept\n$/);
    assert(!await exists(state));

    const later = await run(train("stopped"), () => exists(state));
    assertEquals(later.code, 130, later.said);
    const [, step] =
      /stopped; step (\d+) is in (?:.*): the same command continues\n$/
        .exec(later.said)!;
    assert(["50", "100"].includes(step), later.said);

    const resumed = await run(train("stopped"));
    assertEquals(resumed.code, 0, resumed.said);
    assertMatch(
      resumed.said,
      new RegExp(`continuing at step ${step} of ${state}\n`),
    );
    assert(!await exists(state));

    const whole = await run(train("whole"));
    assertEquals(whole.code, 0, whole.said);
    const [a, b] = await Promise.all(
      ["stopped", "whole"].map((name) =>
        Deno.readFile(`${folder}/${name}.safetensors`)
      ),
    );
    assertEquals(a, b);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
