import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { memoryCommand, runMemory } from "../../src/cli/memory.ts";
import { chooseMemory, modelConfigs } from "../../src/cli/memory_use.ts";
import { trainingMemory } from "../../src/customize/memory.ts";
import { method } from "../../src/customize/methods.ts";
import type { MemoryNeed } from "../../src/models/blank.ts";
import { fixturePath, forEachBackend } from "../helpers.ts";

const tiny = fixturePath("tiny-sd");

/** What the command prints. */
async function printed(...args: string[]): Promise<string> {
  const { log } = console;
  const lines: string[] = [];
  console.log = (...parts) => void lines.push(parts.join(" "));
  try {
    await runMemory(memoryCommand.parse(args)!);
  } finally {
    console.log = log;
  }
  return lines.join("\n");
}

Deno.test("memory prints what the trainer takes", async () => {
  const args = ["--model", tiny, "--train", "lora", "--size", "64", "--json"];
  const high = JSON.parse(await printed(...args, "--memory", "high"));
  const expected = await trainingMemory(await modelConfigs({ model: tiny }), {
    method: method("lora"),
    height: 64,
    width: 64,
    encoding: true,
  });
  assertEquals(high, { ...expected, memory: "high", half: false });
  const low = JSON.parse(await printed(...args, "--memory", "low"));
  const half = JSON.parse(await printed(...args, "--memory", "low", "--half"));
  assert(low.peak < high.peak, `${low.peak} of ${high.peak}`);
  assertEquals(low.weights, high.weights);
  assert(half.weights < 0.55 * low.weights);
  // There is use: high. There is none: low.
  assertEquals(JSON.parse(await printed(...args)).memory, "high");
  const large = args.map((arg) => arg === "64" ? "192" : arg);
  const tight = JSON.parse(await printed(...large, "--card", "0.1"));
  assertEquals(tight.memory, "low");
  const text = await printed(...args.filter((arg) => arg !== "--json"));
  assert(/^activations .* GB$/m.test(text), text);
  assert(/ on webgpu, --memory high$/.test(text), text);
});

Deno.test("drawing and fusing are counted, and known models need no file", async () => {
  const drawn = JSON.parse(
    await printed("--model", tiny, "--sample", "--json", "--batch", "2"),
  ) as MemoryNeed;
  assert(drawn.activations > 0);
  assertEquals(drawn.optimizer, 0);
  const fused = JSON.parse(
    await printed("--model", tiny, "--fuse", "3", "--json"),
  ) as MemoryNeed;
  assert(fused.host! > 0 && fused.adapters > 0);
  const { unet, textEncoder } = await modelConfigs({ model: "sd15" });
  assertEquals(unet.block_out_channels, [320, 640, 1280, 1280]);
  assertEquals(textEncoder.hidden_size, 768);
});

Deno.test("memory refuses what does not go together", () => {
  for (
    const [args, expected] of [
      [[], "one of --train METHOD, --sample, --fuse N and --table"],
      [["--sample", "--train", "lora"], "got 2 of them"],
      [["--sample", "--rank", "4"], "--train METHOD with --rank"],
      [["--fuse", "2", "--batch", "4"], "--train or --sample with --batch"],
      [["--sample", "--half", "--backend", "wasm"], "webgpu with --half"],
      [["--sample", "--size", "0"], "--size such as 512 or 512x768"],
      [["--sample", "--size", "5x"], "--size such as 512 or 512x768"],
    ] as const
  ) {
    assertThrows(() => memoryCommand.parse(args), Error, expected);
  }
});

type Count = Parameters<typeof chooseMemory>[1]["count"];

/** A training run of the tiny model. */
async function training(side: number, batch: number) {
  const configs = await modelConfigs({ model: tiny });
  const count: Count = ({ batch, ...run }, options) =>
    trainingMemory(
      configs,
      { ...run, method: method("lora", "paper", { batch }) },
      options,
    );
  const run = { height: side, width: side, batch };
  return { what: "train", configs, run, batched: true, count };
}

const AUTO = { memory: "auto", half: false, card: undefined } as const;

forEachBackend("what does not fit is refused, with what would", async () => {
  const kernels = { kernels: "wasm" } as const;
  // Small runs are not even counted.
  const use = await chooseMemory(AUTO, await training(64, 1));
  assertEquals(use, { memory: "high", half: false });
  const four = await training(64, 4);
  const bytes = async (batch: number, memory: "high" | "low") =>
    (await four.count({ ...four.run, batch, memory, half: false }, kernels))
      .bytes;
  const [high, low, two] = [
    await bytes(4, "high"),
    await bytes(4, "low"),
    await bytes(2, "low"),
  ];
  assert(high > low && low > two);
  const limit = (bytes: number) => ({ bytes, whose: "of this test" });
  // Exactly as much as is needed, and a byte less.
  assertEquals((await chooseMemory(AUTO, four, limit(high))).memory, "high");
  assertEquals((await chooseMemory(AUTO, four, limit(high - 1))).memory, "low");
  assertEquals((await chooseMemory(AUTO, four, limit(low))).need!.bytes, low);
  const refused = await assertRejects(
    () => chooseMemory(AUTO, four, limit(low - 1)),
    Error,
    "Cannot train 64×64 pixels, 4 at once: expected at most ",
  );
  assert(
    refused.message.includes(
      ", the memory of this test, got a run that needs ",
    ),
    refused.message,
  );
  assert(refused.message.includes("; these fit: --batch 2 ("), refused.message);
  const keeping = await assertRejects(
    () => chooseMemory({ ...AUTO, memory: "high" }, four, limit(low)),
    Error,
    "these fit: --memory low (",
  );
  assert(keeping.message.includes(`--memory low and --batch 2 (`));
  await assertRejects(
    () => chooseMemory(AUTO, four, limit(1e6)),
    Error,
    "no smaller run of this model fits either",
  );
  await assertRejects(
    () => chooseMemory({ ...AUTO, half: true }, four),
    Error,
    "Cannot train: expected --backend webgpu with --half, got wasm",
  );
}, ["wasm"]);

forEachBackend(
  "a size with a digit too many: what fits is still found",
  async () => {
    const huge = await training(1024, 1), small = await training(128, 1);
    const options = { kernels: "wasm" } as const;
    const { bytes } = await small.count(
      { ...small.run, memory: "low", half: false },
      options,
    );
    await assertRejects(
      () => chooseMemory(AUTO, huge, { bytes, whose: "of this test" }),
      Error,
      "these fit: 128×128 pixels (",
    );
  },
  ["wasm"],
);

forEachBackend("half floats are the last way out", async () => {
  const one = await training(64, 1);
  const bytes = async (half: boolean) =>
    (await one.count({ ...one.run, memory: "low", half }, {})).bytes;
  const [full, half] = [await bytes(false), await bytes(true)];
  assert(half < full);
  const limit = { bytes: half, whose: "of this test" };
  const use = await chooseMemory(AUTO, one, limit);
  assertEquals([use.memory, use.half], ["low", true]);
  await assertRejects(
    () => chooseMemory({ ...AUTO, memory: "low" }, one, limit),
    Error,
    "these fit: --half (",
  );
}, ["webgpu"]);
