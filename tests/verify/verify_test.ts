import { assert, assertEquals, assertThrows } from "@std/assert";
import { format, summary, verifyCommand } from "./main.ts";
import { runCommand } from "../../src/cli/command.ts";
import { Fixture } from "./fixture.ts";
import { maximumError, relative } from "./check.ts";
import { parseRun } from "./lora.ts";
import { globPattern, type Line, verify } from "./mod.ts";
import { selectBackend } from "../../src/core/backend.ts";
import {
  encodeSafetensors,
  openSafetensors,
  type RawTensor,
} from "../../src/io/safetensors.ts";
import { fixturePath, noLeak } from "../helpers.ts";

const root = fixturePath("").replace(/\/$/, "");
const variant = fixturePath("variants/sd2");
/** A tensor of its expected/unet. */
const OUT = "out.t0";
/** Lines of the variant that compare something. */
const SEEN = 39;

async function lines(folder: string, only?: string): Promise<Line[]> {
  const found: Line[] = [];
  const options = only === undefined ? {} : { only };
  for await (const line of verify(folder, options)) found.push(line);
  return found;
}

/** Every line ok, or a message with those that are not. */
function assertOk(found: readonly Line[], least: number): void {
  const bad = found.filter(({ status }) => status !== "ok");
  assertEquals(bad, []);
  assert(found.length >= least, `${found.length} lines`);
}

Deno.test("options, and errors that say what is wrong", () => {
  const { parse } = verifyCommand;
  assertEquals(parse(["x", "--only", "unet/*", "--json"]), {
    folder: "x",
    only: "unet/*",
    backend: "auto",
    json: true,
    verbose: false,
  });
  assert(parse([])!.folder.endsWith("tests/fixtures"));
  for (const bad of [["--nope"], ["a", "b"], ["--backend", "cuda"]]) {
    assertThrows(() => parse(bad), Error, "Cannot verify");
  }
});

Deno.test("globs cross slashes and know alternatives", () => {
  assert(globPattern("unet/*").test("unet/activations/conv_in"));
  assert(globPattern("{vae,clip}*").test("clip/image_embeds"));
  assert(!globPattern("unet").test("unet/out"));
  assert(globPattern("a.b?").test("a.bc") && !globPattern("a.b").test("axb"));
});

Deno.test("what a pipeline run is stands in its name", () => {
  assertEquals(parseRun("edlora_dpmpp10_cfg7.5_alpha0.7"), {
    kind: "edlora",
    short: "dpmpp",
    sampler: "dpmpp_2m",
    steps: 10,
    guidance: 7.5,
    alpha: 0.7,
  });
  assertEquals(parseRun("sd_euler_a20_cfg1")?.sampler, "euler_a");
  assertEquals(parseRun("sd_dpmpp2m5_cfg3")?.steps, 5);
  assertEquals(parseRun("sd_magic10_cfg3"), undefined);
});

Deno.test("errors and tolerances", () => {
  assertEquals(maximumError([1, 2], [1, 2.5]), 0.5);
  assertEquals(maximumError([1, NaN], [1, 2]), Infinity);
  assertEquals(maximumError([NaN, 1], [2, 1]), Infinity);
  assertEquals(maximumError([1], [1, 2]), Infinity);
  // Deviation 1, ten times 3e-6.
  assertEquals(relative([-1, 1]).value, 3e-5);
  const line: Line = {
    name: "a/b",
    status: "FAIL",
    error: 0.25,
    tolerance: 1e-3,
    reason: "so",
  };
  assertEquals(
    format(line).replace(/ +/g, " "),
    "a/b 2.50e-1 1.00e-3 FAIL (so)",
  );
  assertEquals(summary([line, line]), { ok: 0, FAIL: 2, "not covered": 0 });
});

Deno.test("set A: networks, tokenizer, adapters, pipelines", async () => {
  await selectBackend("wasm");
  await noLeak(async () => {
    assertOk(
      await lines(
        root,
        "{tokenizer,text_encoder,unet,vae,pipeline}*",
      ),
      26,
    );
  });
});

Deno.test("no numbers of set A fail, whatever the folder lacks", async () => {
  await selectBackend("wasm");
  const found = await lines(root, "{lora/peft*,schedulers/*,regional*}");
  assertEquals(found.filter(({ status }) => status === "FAIL"), []);
  assert(summary(found).ok > 80);
});

Deno.test("another architecture: that of Stable Diffusion 2", async () => {
  await selectBackend("wasm");
  await noLeak(async () => {
    const found = await lines(variant);
    const [seen, not] = [true, false].map((covered) =>
      found.filter(({ status }) => (status !== "not covered") === covered)
    );
    assertOk(seen, SEEN);
    // Whatever is in the folder is looked at.
    assertEquals(
      not.filter(({ reason }) => !reason!.startsWith("not in this folder")),
      [],
    );
  });
});

/** Lines of a copy of the variant whose files have been changed. */
async function copied(
  change: (folder: string) => Promise<void>,
  only?: string,
): Promise<Line[]> {
  const folder = await Deno.makeTempDir();
  try {
    const copy = async (from: string, to: string) => {
      await Deno.mkdir(to, { recursive: true });
      for await (const { name, isDirectory } of Deno.readDir(from)) {
        if (isDirectory) await copy(`${from}/${name}`, `${to}/${name}`);
        else await Deno.copyFile(`${from}/${name}`, `${to}/${name}`);
      }
    };
    await copy(variant, folder);
    await change(folder);
    return await lines(folder, only);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

async function rewrite(
  path: string,
  change: (tensors: Map<string, RawTensor>) => void,
): Promise<void> {
  const file = await openSafetensors(path);
  const tensors = new Map<string, RawTensor>();
  for (const key of file.entries.keys()) {
    tensors.set(key, await file.read(key));
  }
  file.close();
  change(tensors);
  await Deno.writeFile(path, encodeSafetensors(tensors));
}

const failed = (found: readonly Line[]) =>
  found.filter(({ status }) => status === "FAIL").map(({ name }) => name);

Deno.test("a wrong number, shape or weight is a FAIL", async () => {
  await selectBackend("wasm");
  const nudged = await copied(
    (folder) =>
      rewrite(`${folder}/expected/unet.safetensors`, (tensors) => {
        const raw = tensors.get(OUT)!;
        new Float32Array(raw.data.buffer, raw.data.byteOffset, 1)[0] += 1e-4;
      }),
    "unet/*",
  );
  assertEquals(failed(nudged), [`unet/${OUT}`]);
  const line = nudged.find(({ name }) => name === `unet/${OUT}`)!;
  assert(Math.abs(line.error! - 1e-4) < 3e-5 && line.tolerance! < 3e-5);

  const misshapen = await copied(
    (folder) =>
      rewrite(`${folder}/expected/text_encoder.safetensors`, (tensors) => {
        const raw = tensors.get("pooler_output")!;
        raw.shape = [raw.shape[1], raw.shape[0]];
      }),
    "text_encoder*",
  );
  assertEquals(failed(misshapen), ["text_encoder/pooler_output"]);

  const truncated = await copied(async (folder) => {
    const path = `${folder}/model/vae/diffusion_pytorch_model.safetensors`;
    await Deno.writeFile(path, (await Deno.readFile(path)).slice(0, -8));
  }, "{vae,unet}*");
  assert(failed(truncated).includes("vae"));
  assert(failed(truncated).includes("unet"));

  const unknown = await copied(async (folder) => {
    const path = `${folder}/model/unet/config.json`;
    const config = JSON.parse(await Deno.readTextFile(path));
    await Deno.writeTextFile(
      path,
      JSON.stringify({ ...config, act_fn: "nothing" }),
    );
  }, "unet*");
  assert(failed(unknown).includes("unet"));
});

Deno.test("what no check knows is said, not passed over", async () => {
  await selectBackend("wasm");
  const found = await copied(async (folder) => {
    await rewrite(`${folder}/expected/unet.safetensors`, (tensors) => {
      tensors.set("surprise", tensors.get(OUT)!);
    });
    await Deno.mkdir(`${folder}/novelty`);
    await Deno.copyFile(
      `${folder}/expected/vae.safetensors`,
      `${folder}/novelty/expected.safetensors`,
    );
  });
  assertEquals(failed(found), []);
  const reasons = new Map(found.map(({ name, reason }) => [name, reason]));
  assert(reasons.get("expected/unet.safetensors")?.includes("surprise"));
  assertEquals(
    reasons.get("novelty/expected.safetensors"),
    "no check reads this file",
  );
});

Deno.test("exit codes and the JSON report", async () => {
  const printed: string[] = [];
  const { log, error } = console;
  console.log = console.error = (text: string) => void printed.push(text);
  try {
    const run = (...args: string[]) =>
      runCommand(verifyCommand, [...args, "--backend", "wasm"]);
    assertEquals(await run(variant, "--only", "vae*", "--json"), 0);
    const report = JSON.parse(printed.join("\n"));
    assertEquals(report.counts.FAIL, 0);
    assertEquals(report.items[0].status, "ok");
    assertEquals(report.backend, "wasm");
    assertEquals(await run("/nowhere"), 1);
    assertEquals(await run(variant, "--only", "nothing"), 1);
    assertEquals(await run("--bad"), 2);
    assertEquals(await run("--help"), 0);
    const folder = await Deno.makeTempDir();
    await Deno.writeTextFile(`${folder}/x`, "");
    printed.length = 0;
    assertEquals(await run(folder), 1);
    assert(printed.join().includes("a model in diffusers layout"));
    await Deno.remove(folder, { recursive: true });
  } finally {
    console.log = log;
    console.error = error;
  }
});

Deno.test("Python's infinities are read", async () => {
  const folder = await Deno.makeTempDir();
  await Deno.writeTextFile(
    `${folder}/a.json`,
    '{"a": -Infinity, "b": "Infinity", "c": NaN}',
  );
  assertEquals(await new Fixture(folder).json("a.json"), {
    a: -Infinity,
    b: "Infinity",
    c: NaN,
  });
  await Deno.remove(folder, { recursive: true });
});
