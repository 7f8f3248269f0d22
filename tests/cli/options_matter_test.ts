/**
 * Every option of a command changes what comes out, or the run says that it
 * cannot here: a table of options, each with a pair of runs.
 */
import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { type Command, runCommand } from "../../src/cli/command.ts";
import { trainCommand } from "../../src/cli/train.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { encodePng } from "../../src/io/png.ts";
import { openSafetensors } from "../../src/io/safetensors.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

/** An option's pair of runs. */
interface Pair {
  /** What is added to the command line. */
  readonly add: readonly string[];
  /** What both runs have beside it. */
  readonly both?: readonly string[];
  /** What the run says instead, where the option can change nothing. */
  readonly says?: RegExp;
}

/** Options whose effect is not in the numbers that come out, and why. */
type Elsewhere = Readonly<Record<string, string>>;

interface Outcome {
  readonly code: number;
  readonly said: string;
  readonly result: string;
}

async function outcome<T>(
  command: Command<T>,
  args: readonly string[],
  result: (said: string) => Promise<string>,
): Promise<Outcome> {
  const { log, error } = console;
  const out: string[] = [];
  const err: string[] = [];
  console.log = (...parts) => void out.push(parts.join(" "));
  console.error = (...parts) => void err.push(parts.join(" "));
  try {
    const code = await runCommand(command, args);
    return {
      code,
      said: err.join("\n"),
      result: code === 0 ? await result(out.join("\n")) : "",
    };
  } finally {
    Object.assign(console, { log, error });
  }
}

async function digest(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  return new Uint8Array(hash).toHex();
}

/** Runs every pair; the table must have every option of the command. */
async function checkAll<T>(
  command: Command<T>,
  base: readonly string[],
  pairs: Readonly<Record<string, Pair>>,
  elsewhere: Elsewhere,
  result: (said: string) => Promise<string>,
): Promise<void> {
  assertEquals(
    [...Object.keys(pairs), ...Object.keys(elsewhere)].sort(),
    Object.keys(command.options!).sort(),
  );
  const plain = new Map<string, Outcome>();
  const run = (args: readonly string[]) => outcome(command, args, result);
  for (const [field, { add, both = [], says }] of Object.entries(pairs)) {
    const shared = [...base, ...both];
    const name = shared.join(" ");
    const without = plain.get(name) ?? await run(shared);
    plain.set(name, without);
    assertEquals(without.code, 0, `${field}: ${without.said}`);
    const given = await run([...shared, ...add]);
    if (says) {
      assert(says.test(given.said), `${field} says: ${given.said}`);
      assert(!says.test(without.said), `${field} is said without it`);
      continue;
    }
    assertEquals(given.code, 0, `${field}: ${given.said}`);
    assertNotEquals(given.result, without.result, `${field} changes nothing`);
  }
}

/** A picture with a square of another colour. */
function picture(shade: number, mask = false): Uint8Array {
  const data = new Uint8Array(64 * 64 * 3);
  for (let p = 0; p < 64 * 64; p++) {
    const inside = p % 64 > 16 && p % 64 < 40 && p > 64 * 20;
    data.set(
      mask
        ? new Array(3).fill(inside ? 255 : 0)
        : inside
        ? [shade, 120, 20]
        : [20, p % 200, shade],
      3 * p,
    );
  }
  return encodePng({ width: 64, height: 64, channels: 3, data });
}

/** The same with a transparent corner. */
function cutOut(): Uint8Array {
  const data = new Uint8Array(64 * 64 * 4).fill(255);
  for (let p = 0; p < 64 * 32; p++) data.set([200, 40, 40, 0], 4 * p);
  return encodePng({ width: 64, height: 64, channels: 4, data });
}

async function withWorld(
  check: (
    world: { folder: string; model: string },
  ) => Promise<void>,
): Promise<void> {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  try {
    const world = await writeTinyWorld(folder);
    for (const name of ["pictures", "masks", "class", "clear", "bare"]) {
      await Deno.mkdir(`${folder}/${name}`);
    }
    for (let i = 0; i < 2; i++) {
      const bytes = picture(80 + 90 * i);
      await Deno.writeFile(`${folder}/pictures/${i}.png`, bytes);
      await Deno.writeFile(`${folder}/bare/${i}.png`, bytes);
      await Deno.writeFile(`${folder}/class/${i}.png`, picture(40 + i));
      await Deno.writeFile(`${folder}/masks/${i}_mask.png`, picture(0, true));
      await Deno.writeFile(`${folder}/clear/${i}.png`, cutOut());
      await Deno.writeTextFile(
        `${folder}/pictures/${i}.txt`,
        "{}, a fox, on grass, snow, night\n",
      );
    }
    await check({ folder, ...world });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("every option of train changes the concept, or train says that it cannot", async () => {
  await withWorld(async ({ folder, model }) => {
    const out = `${folder}/out.safetensors`;
    const tensors = async () => {
      const file = await openSafetensors(out);
      try {
        const parts: string[] = [];
        for (const name of [...file.entries.keys()].sort()) {
          const { dtype, data } = await file.read(name);
          parts.push(`${name} ${dtype} ${await digest(new Uint8Array(data))}`);
        }
        return parts.join("\n");
      } finally {
        file.close();
      }
    };
    const images = ["--images", `${folder}/pictures`];
    const bare = ["--images", `${folder}/bare`];
    const base = [
      ...["--model", model, "--backend", "wasm", "--out", out, "--fresh"],
      ...["--name", "rex", "--class", "fox", "--steps", "1", "--batch", "2"],
    ];
    const prior = ["--prior", `${folder}/class`];
    await checkAll(trainCommand, base, {
      masks: { both: images, add: ["--masks", `${folder}/masks`] },
      trigger: {
        both: images,
        add: ["--trigger", "wolf"],
        says: /--trigger changes nothing/,
      },
      caption: { both: bare, add: ["--caption", "a {} in snow"] },
      shuffleCaptions: { both: images, add: ["--shuffle-captions"] },
      keepTokens: {
        both: [...images, "--shuffle-captions"],
        add: ["--keep-tokens", "4"],
      },
      captionDropout: { both: images, add: ["--caption-dropout", "1"] },
      prior: { both: images, add: prior },
      priorWeight: {
        both: [...images, ...prior],
        add: ["--prior-weight", "0.2"],
      },
      background: {
        both: ["--images", `${folder}/clear`],
        add: ["--background", "black"],
      },
      flips: { both: [...images, "--seed", "3"], add: ["--flips"] },
      method: { both: images, add: ["--method", "lora"] },
      preset: { both: images, add: ["--preset", "official"] },
      rank: { both: images, add: ["--rank", "2"] },
      lrEmbedding: { both: images, add: ["--lr-embedding", "0.1"] },
      lrText: { both: images, add: ["--lr-text", "0.1"] },
      lrUnet: { both: images, add: ["--lr-unet", "0.1"] },
      seed: { both: images, add: ["--seed", "5"] },
      size: { both: images, add: ["--size", "32"] },
      averageClass: {
        both: images,
        add: ["--average-class"],
        says: /--average-class changes nothing/,
      },
      dtype: { both: images, add: ["--dtype", "F16"] },
      variant: { both: images, add: ["--variant", "x"], says: /--variant x/ },
      tokenizer: {
        both: images,
        add: ["--tokenizer", model],
        says: /a single file with --tokenizer/,
      },
      half: {
        both: images,
        add: ["--half"],
        says: /--backend webgpu with --half/,
      },
      card: {
        both: images,
        add: ["--card", "8"],
        says: /--backend webgpu with --card/,
      },
      prediction: {
        both: images,
        add: ["--prediction", "epsilon"],
        says: /a single file with --prediction/,
      },
    }, {
      ...{ name: "the tokens' names", class: "where tokens start" },
      ...{ images: "needed", model: "every run has it", out: "every run" },
      ...{ steps: "every run has it", batch: "every run has it" },
      ...{ fresh: "main_test.ts", backend: "kernels, not results" },
      memory: "the same result in less memory: tests/customize/memory_test.ts",
      ...{
        vae: "tests/formats",
        unet: "tests/formats",
        textEncoder: "tests/formats",
      },
    }, tensors);
    // Tokens alone: what an adapter's options would change is not there.
    for (
      const add of [
        ["--rank", "2"],
        ["--lr-text", "1"],
        ["--lr-unet", "1"],
        prior,
      ]
    ) {
      const { code, said } = await outcome(
        trainCommand,
        [...base, ...images, "--method", "textual-inversion", ...add],
        tensors,
      );
      assertEquals(code, 1);
      assert(said.includes(`a method with an adapter for ${add[0]}`), said);
    }
    // Class pictures count in every method with an adapter.
    for (const method of ["lora", "dreambooth"]) {
      const both = [...base, ...images, "--method", method];
      const [without, given] = [
        await outcome(trainCommand, both, tensors),
        await outcome(trainCommand, [...both, ...prior], tensors),
      ];
      assertEquals([without.code, given.code], [0, 0], given.said);
      assertNotEquals(without.result, given.result, method);
    }
  });
});
