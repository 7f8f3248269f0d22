/**
 * `convert`: outputs that are one file, files without a network or a tokenizer.
 */
import { assert, assertEquals } from "@std/assert";
import { saveSingleFile } from "../../src/formats/ldm.ts";
import { joinPath } from "../../src/io/files.ts";
import {
  openSafetensors,
  type RawTensor,
  writeSafetensors,
} from "../../src/io/safetensors.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { disposeModel } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { fixturePath, inFolder } from "../helpers.ts";
import { runDeno } from "../tools/repository.ts";
import { said } from "./said.ts";

const convert = (...args: string[]) => said("convert", ...args);

const LORA = fixturePath("lora/edlora_official.safetensors");
const MODEL = fixturePath("tiny-sd");

Deno.test("two outputs, or input and output, are never one file", () =>
  inFolder(async (folder) => {
    const at = (name: string) => joinPath(folder, name);
    const out = at("x.safetensors");
    await Deno.copyFile(LORA, at("in.safetensors"));
    await Deno.symlink(at("in.safetensors"), at("link.safetensors"));
    await Deno.symlink("x.safetensors", at("dangling.safetensors"));
    const to = ["--to", "kohya", "--model", MODEL];
    const cases: [string[], string][] = [
      [[LORA, out, ...to, "--tokens", out], "OUT and --tokens"],
      [
        [LORA, out, ...to, "--tokens", `${folder}/./x.safetensors`],
        "OUT and --tokens",
      ],
      [
        [LORA, out, ...to, "--tokens", at("dangling.safetensors")],
        "OUT and --tokens",
      ],
      [[at("in.safetensors"), at("link.safetensors"), ...to], "IN and OUT"],
      [
        [at("in.safetensors"), out, ...to, "--tokens", at("in.safetensors")],
        "IN and --tokens",
      ],
    ];
    for (const [args, message] of cases) {
      const { code, error } = await convert(...args);
      assertEquals(code, 1, error);
      assert(error.includes(`different files for ${message}`), error);
    }
    const names = [];
    for await (const { name } of Deno.readDir(folder)) names.push(name);
    assertEquals(names.sort(), [
      "dangling.safetensors",
      "in.safetensors",
      "link.safetensors",
    ]);
    const { code, error } = await convert(
      ...[LORA, out, ...to, "--tokens", at("t.safetensors")],
    );
    assertEquals(code, 0, error);
    // A name that the system does not take is told before work.
    const long = await convert(
      LORA,
      at(`${"a".repeat(256)}.safetensors`),
      ...to,
    );
    assertEquals(long.code, 1);
    assert(long.error.startsWith("Cannot write "), long.error);
  }));

Deno.test("single files become single files without tokenizer, hub or VAE", async () => {
  await selectBackend("cpu");
  await inFolder(async (folder) => {
    const at = (name: string) => joinPath(folder, `${name}.safetensors`);
    const model = await tinySd();
    await saveSingleFile(at("whole"), model);
    const file = await openSafetensors(at("whole"));
    const all: [string, RawTensor][] = [];
    for (const name of file.entries.keys()) {
      all.push([name, await file.read(name)]);
    }
    file.close();
    await writeSafetensors(
      at("novae"),
      all.filter(([name]) => !name.startsWith("first_stage_model.")),
      file.metadata,
    );
    disposeModel(model);
    const { fetch } = globalThis;
    // Nothing here needs the hub.
    globalThis.fetch = (input) => Promise.reject(new Error(`asked ${input}`));
    try {
      const halve = ["--to", "single-file", "--dtype", "F16"];
      const half = await convert(at("whole"), at("half"), ...halve);
      assertEquals([half.code, half.error], [0, ""]);
      const halved = await openSafetensors(at("half"));
      const types = new Set([...halved.entries.values()].map((e) => e.dtype));
      assertEquals([...types].sort(), ["F16", "I64"]);
      assertEquals(halved.entries.size, all.length);
      halved.close();
      const without = await convert(at("novae"), at("x"), ...halve);
      assertEquals(without.code, 1);
      assert(without.error.includes("expected a VAE in it"), without.error);
      const vae = await convert(at("novae"), at("y"), ...halve, "--vae", MODEL);
      assertEquals([vae.code, vae.error], [0, ""]);
      const [a, b] = await Promise.all([
        Deno.readFile(at("half")),
        Deno.readFile(at("y")),
      ]);
      assertEquals(a, b);
      await writeSafetensors(
        at("changed"),
        all.map(([name, raw]): [string, RawTensor] =>
          name.endsWith("middle_block.1.transformer_blocks.0.attn2.to_k.weight")
            ? [name, { ...raw, data: raw.data.toReversed() }]
            : [name, raw]
        ),
        file.metadata,
      );
      const lora = await convert(
        ...[at("changed"), at("lora"), "--to", "kohya"],
        ...["--difference-to", at("whole"), "--rank", "2"],
      );
      assertEquals(lora.code, 0, lora.error);
      // A folder has a tokenizer, so here one is needed.
      // The environment is the process's: other test files run in it.
      const folders = await runDeno([
        ...["run", "-q", "-A", "--no-check", "src/cli/main.ts", "convert"],
        ...[at("half"), joinPath(folder, "f"), "--to", "folder"],
      ], { env: { HF_HUB_OFFLINE: "1", HF_HOME: joinPath(folder, "hf") } });
      assertEquals(folders.code, 1);
      assert(folders.stderr.includes("openai/clip-vit-large-patch14"));
    } finally {
      globalThis.fetch = fetch;
    }
  });
});
