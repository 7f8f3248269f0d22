import { assert, assertEquals, assertRejects } from "@std/assert";
import { runCommand } from "../../src/cli/command.ts";
import { drawnSteps, drawPictures } from "../../src/cli/draw.ts";
import type { DrawnStep } from "../../src/cli/drawing.ts";
import { sampleCommand } from "../../src/cli/sample.ts";
import { fittingWorkers, shares, workersFor } from "../../src/cli/workers.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { disposeConcept, initConcept } from "../../src/customize/concept.ts";
import { parseLayout } from "../../src/diffusion/layout.ts";
import { saveConcept } from "../../src/formats/concept_file.ts";
import { disposeModel } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { fixturePath } from "../helpers.ts";
import { ON_ONE_CORE } from "../tools/repository.ts";

const model = fixturePath("tiny-sd");

/** Draws; gives the files of pictures by number, and what was said. */
async function drawn(
  layout: Parameters<typeof parseLayout>[0],
  workers: number,
  more: Partial<Parameters<typeof drawPictures>[0]> = {},
  available?: number,
) {
  const pictures: Uint8Array[] = [];
  const notices: string[] = [];
  const steps: DrawnStep[] = [];
  await drawPictures({
    layout: parseLayout(layout),
    adapters: "sum",
    batch: 4,
    model: { model },
    concepts: [],
    networks: {},
    ...more,
  }, {
    backend: "wasm",
    workers,
    available,
    onNotice: (line) => notices.push(line),
    onStep: (step) => steps.push(step),
    onPicture: ({ number, png }) => {
      assertEquals(pictures[number], undefined, `picture ${number} twice`);
      pictures[number] = png;
      return Promise.resolve();
    },
  });
  return { pictures, notices, steps };
}

Deno.test("pictures are the same bytes whatever the number of workers", async () => {
  await selectBackend("wasm");
  // Five pictures: neither workers nor batches divide them.
  const layout = { prompt: "a cat", count: 5, steps: 2, seed: 7 };
  const alone = await drawn(layout, 0);
  assertEquals(alone.pictures.length, 5);
  const different = new Set(alone.pictures.map((png) => png.join()));
  assertEquals(different.size, 5);
  // One worker draws what two do: the test of their memory, below.
  const shared = await drawn(layout, 2);
  assertEquals(shared.pictures, alone.pictures);
  const tally = drawnSteps(5);
  const all = shared.steps.map((step) => tally(step));
  assertEquals(all.at(-1), { done: 10, total: 10 });
  all.forEach(({ done }, i) => assert(done > (all[i - 1]?.done ?? 0)));
  const other = await drawn({ ...layout, seed: 8 }, 0);
  assert(other.pictures[0].join() !== alone.pictures[0].join());
});

Deno.test("regions, adapters per region and conditions are shared as well", async () => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  const base = await tinySd();
  const names = ["fox", "owl"];
  for (const [i, name] of names.entries()) {
    const concept = await initConcept(base, {
      name,
      classWord: "cat",
      key: key(i),
      severalTokens: "mean",
    });
    await saveConcept(`${folder}/${name}.safetensors`, concept, base);
    disposeConcept(concept);
  }
  disposeModel(base);
  const box = (left: number) => ({
    top: 0,
    left,
    bottom: 1,
    right: left + 0.5,
  });
  const layout = {
    prompt: "two animals",
    size: { width: 64, height: 48 },
    steps: 2,
    count: 3,
    regions: names.map((name, i) => ({
      box: box(i / 2),
      prompt: `a <${name}1> <${name}2>`,
      concepts: [name],
    })),
    conditions: [{
      type: "t2i_adapter",
      network: "sketch",
      image: { regions: "outline" },
    }],
  };
  const more = {
    adapters: "region" as const,
    concepts: names.map((name) => ({ path: `${folder}/${name}.safetensors` })),
    networks: { sketch: fixturePath("t2i_adapter/adapter1") },
  };
  try {
    const alone = await drawn(layout, 0, more);
    const shared = await drawn(layout, 2, more);
    assertEquals(alone.pictures.length, 3);
    assertEquals(shared.pictures, alone.pictures);
    assertEquals(shared.notices, alone.notices);
    // What is wrong is said by the worker as it is in place.
    for (const workers of [0, 1]) {
      await assertRejects(
        () => drawn({ ...layout, prompt: "<dog1>" }, workers, more),
        Error,
        "prompt: unknown concept <dog1> (known: <fox1>",
      );
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("workers that do not fit into memory are not used", async () => {
  await selectBackend("wasm");
  const layout = { prompt: "a cat", count: 3, steps: 1 };
  const enough = await drawn(layout, 2, {}, 1e10);
  assertEquals(enough.notices, []);
  const little = await drawn(layout, 2, {}, 2e8);
  assertEquals(little.notices, [
    "1 of 2 workers: each takes 0.2 GB of 0.2 GB that are free",
  ]);
  assertEquals(little.pictures, enough.pictures);
  // The first worker drew all, so its batch was not cut for a second one.
  assertEquals(new Set(little.steps.map(({ first }) => first)).size, 1);
  assertEquals(new Set(enough.steps.map(({ first }) => first)).size, 2);
  assertEquals(fittingWorkers(4, 5e9, 16e9), {
    workers: 3,
    note: "3 of 4 workers: each takes 5.2 GB of 16.0 GB that are free",
  });
  assertEquals(fittingWorkers(3, 5e9, 16e9), { workers: 3 });
  // One has to be: whether it fits is another's question.
  assertEquals(fittingWorkers(1, 5e9, 1e9), { workers: 1 });
  assertEquals(fittingWorkers(2, 5e9, 1e9).workers, 1);
});

Deno.test("shares cover the list once, and are as long as they can be alike", () => {
  assertEquals(shares(5, 2, 4), [[0, 2], [2, 5]]);
  assertEquals(shares(3, 1, 4), [[0, 3]]);
  assertEquals(shares(2, 4, 4), [[0, 1], [1, 2]]);
  for (const count of [1, 2, 7, 20, 33]) {
    for (const workers of [1, 2, 3, 8]) {
      for (const batch of [1, 4, 10]) {
        const parts = shares(count, workers, batch);
        const numbers = parts.flatMap(([first, end]) =>
          Array.from({ length: end - first }, (_, i) => first + i)
        );
        assertEquals(numbers, Array.from({ length: count }, (_, i) => i));
        const lengths = parts.map(([first, end]) => end - first);
        assert(Math.max(...lengths) <= batch);
        assert(Math.max(...lengths) - Math.min(...lengths) <= 1);
      }
    }
  }
});

Deno.test("progress never goes back, however many draw and at once", () => {
  const tally = drawnSteps(5);
  const done = [[0, 2], [2, 3]].flatMap(([first, count]) =>
    Array.from({ length: 3 }, (_, index) => ({ first, count, index, total: 3 }))
  ).sort((a, b) => a.index - b.index).map((step) => {
    const { done, total } = tally(step);
    assertEquals(total, 15);
    return done;
  });
  assertEquals(done, [2, 5, 7, 10, 12, 15]);
});

Deno.test("a graphics card has no workers unless they are asked for", () => {
  assertEquals(workersFor(undefined, "webgpu"), 0);
  assertEquals(workersFor(2, "webgpu"), 2);
  assertEquals(workersFor(0, "wasm"), 0);
  assert(workersFor(undefined, "wasm") >= 1);
});

Deno.test("--workers is refused if it is no number of workers", async () => {
  const { error } = console;
  const said: string[] = [];
  console.error = (text) => said.push(String(text));
  try {
    for (const bad of ["-1", "1.5", "many"]) {
      const args = ["--prompt", "x", "--workers", bad];
      assertEquals(await runCommand(sampleCommand, args), 2);
    }
  } finally {
    console.error = error;
  }
  assert(said.every((line) => line.includes("--workers")), said.join("\n"));
});

Deno.test("Ctrl-C ends drawing and its workers", async () => {
  const out = await Deno.makeTempDir();
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-q", "-P=local", ON_ONE_CORE, "src/cli/main.ts", "sample"],
      ...["--prompt", "a cat", "--count", "8", "--steps", "200"],
      ...["--model", model, "--backend", "wasm", "--workers", "2"],
      ...["--out", out],
    ],
    cwd: new URL("../../", import.meta.url).pathname,
    stdout: "null",
    stderr: "piped",
  }).spawn();
  try {
    let said = "";
    for await (
      const text of child.stderr.pipeThrough(new TextDecoderStream())
    ) {
      said += text;
      if (said.includes("drawing: ")) child.kill("SIGINT");
    }
    const { success, signal } = await child.status;
    assert(!success, said);
    assertEquals(signal, "SIGINT");
  } finally {
    await Deno.remove(out, { recursive: true });
  }
});
