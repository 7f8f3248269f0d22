/**
 * Inputs that people bring, small and made here: used, or refused in a sentence
 * that names the thing.
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { parseConcept } from "../../src/cli/concepts.ts";
import { firstFrames } from "../../src/cli/options.ts";
import { sampleCommand } from "../../src/cli/sample.ts";
import { trainCommand } from "../../src/cli/train.ts";
import { writeAtomic } from "../../src/io/files.ts";
import { decodePicture } from "../../src/io/picture.ts";
import { encodePng } from "../../src/io/png.ts";
import { readExamples } from "../../src/customize/dataset.ts";
import {
  openSafetensors,
  type RawTensor,
  writeSafetensors,
} from "../../src/io/safetensors.ts";
import { fixturePath, inFolder } from "../helpers.ts";
import { said } from "./said.ts";

const MODEL = fixturePath("tiny-sd");

/** A copy of the tiny model whose files are links, so that some can change. */
async function modelIn(folder: string): Promise<string> {
  const to = `${folder}/model`;
  const copy = async (from: string, to: string) => {
    await Deno.mkdir(to, { recursive: true });
    for await (const { name, isDirectory } of Deno.readDir(from)) {
      if (isDirectory) await copy(`${from}/${name}`, `${to}/${name}`);
      else await Deno.copyFile(`${from}/${name}`, `${to}/${name}`);
    }
  };
  await copy(MODEL, to);
  return to;
}

/** Draws one step with a model. */
const draw = (folder: string, model: string, ...args: string[]) =>
  said(
    ...["sample", "--model", model, "--prompt", "a fox", "--backend", "wasm"],
    ...["--out", `${folder}/out`, ...args],
    ...(args.includes("--steps") ? [] : ["--steps", "1"]),
    ...(args.includes("--size") ? [] : ["--size", "32x32"]),
  );

Deno.test("model folders as people have them", () =>
  inFolder(async (folder) => {
    const model = await modelIn(folder);
    const at = (path: string) => `${model}/${path}`;
    const fine = async (...args: string[]) => {
      const { code, error } = await draw(folder, model, ...args);
      assertEquals(code, 0, error);
    };
    const refused = async (message: string, ...args: string[]) => {
      const { code, error } = await draw(folder, model, ...args);
      assertEquals(code, 1);
      assert(error.includes(message), error);
      assert(!error.includes("    at "), error);
    };
    // What is no model at all is told before anything is fetched.
    const lora = fixturePath("lora/edlora_official.safetensors");
    for (
      const [path, message, ...more] of [
        [
          at("unet"),
          "expected a model folder, with unet, text_encoder and vae",
        ],
        [lora, "expected a model, got a file without its networks"],
        // Its parts are told, not what a run of something else would need.
        [
          at("unet/diffusion_pytorch_model.safetensors"),
          "expected a text encoder and a VAE",
          ...["--tokenizer", at("tokenizer")],
        ],
        [at("model_index.json"), "Cannot read"],
      ]
    ) {
      const { code, error } = await said(
        ...["sample", "--prompt", "x", "--backend", "wasm", "--model", path],
        ...["--out", `${folder}/out`, ...more],
      );
      assertEquals(code, 1);
      assert(error.includes(message), error);
    }
    // Parts that need not be there, or are null.
    const index = JSON.parse(await Deno.readTextFile(at("model_index.json")));
    await Deno.writeTextFile(
      at("model_index.json"),
      JSON.stringify({ ...index, safety_checker: null, image_encoder: null }),
    );
    await fine();
    await Deno.remove(at("model_index.json"));
    await fine();
    // A byte order mark, as editors on Windows write it.
    const config = await Deno.readTextFile(at("unet/config.json"));
    await Deno.writeTextFile(at("unet/config.json"), `\ufeff${config}`);
    await fine();
    // Python's numbers, another scheduler's class.
    const scheduler = at("scheduler/scheduler_config.json");
    const usual = JSON.parse(await Deno.readTextFile(scheduler));
    const text = JSON.stringify({
      ...usual,
      _class_name: "KDPM2DiscreteScheduler",
      lambda_min_clipped: 1,
      beta_x: 2,
    });
    await Deno.writeTextFile(
      scheduler,
      text.replace(':1,"beta_x":2', ':-Infinity,"beta_x":NaN'),
    );
    await fine();
    await Deno.writeTextFile(
      scheduler,
      JSON.stringify({ _class_name: "FlowMatchEulerDiscreteScheduler" }),
    );
    await refused("FlowMatchEulerDiscreteScheduler, of another forward");
    await Deno.writeTextFile(scheduler, JSON.stringify(usual));
    // Weights in shards, then with one of them missing.
    const weights = at("unet/diffusion_pytorch_model.safetensors");
    const file = await openSafetensors(weights);
    const parts: [string, RawTensor][][] = [[], []];
    for (const [i, name] of [...file.entries.keys()].entries()) {
      parts[i % 2].push([name, await file.read(name)]);
    }
    file.close();
    await Deno.remove(weights);
    const map: Record<string, string> = {};
    for (const [i, part] of parts.entries()) {
      const name = `diffusion_pytorch_model-0000${i + 1}-of-00002.safetensors`;
      await writeSafetensors(at(`unet/${name}`), part);
      for (const [key] of part) map[key] = name;
    }
    await Deno.writeTextFile(
      `${weights}.index.json`,
      JSON.stringify({ metadata: { total_size: 1 }, weight_map: map }),
    );
    await fine();
    await Deno.remove(
      at("unet/diffusion_pytorch_model-00002-of-00002.safetensors"),
    );
    await refused("the shard diffusion_pytorch_model-00002-of-00002");
    await fine("--unet", MODEL);
    // A pickle in the place of safetensors.
    await Deno.remove(`${weights}.index.json`);
    await Deno.writeTextFile(at("unet/diffusion_pytorch_model.bin"), "");
    await refused("only diffusion_pytorch_model.bin: pick");
    // No VAE at all: another's is taken.
    await Deno.remove(at("vae"), { recursive: true });
    await refused(
      "vae/config.json in it, or another file's (--vae), got none",
      "--unet",
      MODEL,
    );
    await fine("--unet", MODEL, "--vae", MODEL);
  }));

Deno.test("folders of pictures as people have them", () =>
  inFolder(async (folder) => {
    const png = encodePng({
      ...{ width: 32, height: 32, channels: 3 },
      data: Uint8Array.from({ length: 32 * 32 * 3 }, (_, i) => i % 251),
    });
    const put = (path: string, data: Uint8Array | string) =>
      typeof data === "string"
        ? Deno.writeTextFile(`${folder}/${path}`, data)
        : Deno.writeFile(`${folder}/${path}`, data);
    // Names in any case and any script, byte order marks, CRLF, system files.
    await Deno.mkdir(`${folder}/写真 фото`);
    const within = (name: string) => `写真 фото/${name}`;
    await put(within("A.PNG"), png);
    await put(within("A.txt"), "\ufeffa {} on grass\r\n\r\n");
    await put(within("犬 ñ.png"), png);
    await put(within("犬 ñ.caption"), "{} à la plage");
    await put(within("c.PNG"), png);
    await put(within("c.TXT"), "{} in snow\r\n");
    await put(within("Thumbs.db"), "x");
    await put(within(".DS_Store"), "x");
    const examples = await readExamples(`${folder}/写真 фото`, { size: 16 });
    assertEquals(
      examples.map(({ name, captions }) => [name, captions]),
      [
        ["A.PNG", ["a {} on grass"]],
        ["c.PNG", ["{} in snow"]],
        ["犬 ñ.png", ["{} à la plage"]],
      ],
    );
    const refused = async (
      name: string,
      data: Uint8Array | string,
      why: string,
    ) => {
      const at = await Deno.makeTempDir({ dir: folder });
      const path = `${at.slice(folder.length + 1)}/${name}`;
      await put(path, data);
      const { code, error } = await said(
        ...["train", "--name", "rex", "--class", "cat", "--images", at],
        ...[
          "--model",
          MODEL,
          "--backend",
          "wasm",
          "--out",
          `${folder}/x.safetensors`,
        ],
      );
      assertEquals(code, 1);
      assert(error.includes(why), `${name}: ${error}`);
    };
    const head = (text: string) => new TextEncoder().encode(text);
    await refused("a.png", "", "got an empty file");
    await refused("a.png", png.slice(0, 90), "cut off");
    await refused("a.png", head("GIF89a 0123456789"), "got a GIF");
    await refused("a.gif", head("GIF89a 0123456789"), "got a GIF");
    await refused("a.bmp", head("BM0123456789abcdef"), "got a BMP");
    await refused("a.heic", head("\0\0\0\x18ftypheic\0\0\0\0"), "got a HEIC");
    await refused(
      "a.pdf",
      "x",
      "PNG, JPEG, WebP or AVIF pictures in it, got none",
    );
    await refused("a.png", "<!DOCTYPE html><html></html>", "a.png");
  }));

Deno.test("what lies in a folder of pictures is read, or named", () =>
  inFolder(async (folder) => {
    const side = 32;
    const grey = (value: (x: number) => number) =>
      encodePng({
        ...{ width: side, height: side, channels: 1 },
        data: Uint8Array.from({ length: side ** 2 }, (_, i) => value(i % side)),
      });
    const picture = grey((x) => 5 * x), mask = grey((x) => x < 9 ? 255 : 0);
    const wide = (text: string) =>
      Uint8Array.from([...text].flatMap((c) => [c.charCodeAt(0), 0]));
    const latin = (text: string) =>
      Uint8Array.from(text, (c) => c.charCodeAt(0));
    const line = (file_name: string, text: string) =>
      JSON.stringify({ file_name, text }) + "\n";
    /** Captions, how many masks, what is named as not read; or the refusal. */
    const cases: [
      what: string,
      files: Record<string, string | Uint8Array>,
      expected: [string[][], number, string[]] | string,
      masks?: string,
    ][] = [
      [
        "UTF-16 with a mark",
        { "a.txt": Uint8Array.of(0xff, 0xfe, ...wide("{} où")) },
        [[["{} où"]], 0, []],
      ],
      ["UTF-16 without", { "a.txt": wide("a {}") }, "a.txt: expected UTF-8"],
      ["Latin 1", { "a.txt": latin("{} \xe0") }, "a.txt: expected UTF-8"],
      [
        "a table of captions",
        {
          "metadata.jsonl": line("a.png", "a {}") + line("a.png", "{} here"),
        },
        [[["a {}", "{} here"]], 0, []],
      ],
      [
        "a table that names no picture",
        { "metadata.jsonl": line("z.png", "a {}") },
        "line 1: expected the name of a picture beside it, got z.png",
      ],
      [
        "a table of something else",
        { "metadata.jsonl": '{"image": "a.png"}' },
        'expected {"file_name": "a.png", "text": "a caption"}',
      ],
      [
        "a table and a file that differ",
        { "metadata.jsonl": line("a.png", "a {}"), "a.txt": "{}" },
        "one place for captions",
      ],
      ["the whole name", { "a.png.txt": "{} here" }, [[["{} here"]], 0, []]],
      [
        "other tools' files",
        { "a.tags": "x", "b.txt": "x", "meta_cap.json": "{}", "Thumbs.db": "" },
        [[["photo of a {}", "{}"]], 0, ["a.tags", "b.txt", "meta_cap.json"]],
      ],
      [
        "pictures below",
        { "more/b.png": picture },
        [[["photo of a {}", "{}"]], 0, ["more/"]],
      ],
      [
        "a mask beside its picture",
        { "a.txt": "{}", "a-masklabel.png": mask },
        [[["{}"]], 1, []],
      ],
      ["masks beside, as said", { "a.txt": "{}", "mask_a.png": mask }, [
        [["{}"]],
        1,
        [],
      ], "."],
      ["no masks beside", {}, "masks beside the pictures", "."],
      [
        "a mask of no picture",
        { "a.txt": "{}", "masks/a.png": mask, "masks/z.png": mask },
        [[["{}"]], 1, ["masks/z.png"]],
      ],
    ];
    for (const [i, [what, files, expected, masks]] of cases.entries()) {
      const at = `${folder}/${i}`;
      for (
        const [name, data] of Object.entries({ "a.png": picture, ...files })
      ) {
        await writeAtomic(`${at}/${name}`, data);
      }
      let unread: readonly string[] = [];
      const reading = readExamples(at, {
        size: 16,
        masks: masks && `${at}/${masks}`,
        onUnread: (names) => unread = names,
      });
      if (typeof expected === "string") {
        const { message } = await assertRejects(() => reading, Error);
        assert(message.includes(expected), `${what}: ${message}`);
        continue;
      }
      const examples = await reading;
      assertEquals(
        [
          examples.map(({ captions }) => captions),
          examples.filter(({ mask }) => mask).length,
          unread.map((name) => name.replace(`${at}/`, "")),
        ],
        expected,
        what,
      );
    }
    await Deno.mkdir(`${folder}/none/day1`, { recursive: true });
    await assertRejects(
      () => readExamples(`${folder}/none`, { size: 16 }),
      Error,
      "or in folders such as 10_rex dog, got none, and day1/",
    );
    await assertRejects(
      () => readExamples(`${folder}/0/a.png`, { size: 16 }),
      Error,
      "expected a folder that can be read, got a file",
    );
  }));

Deno.test("of an animation the first frame is used, and that is said", async () => {
  const at = (name: string) => fixturePath(`pictures/${name}`);
  const still = await Deno.readFile(at("rgba8.png"));
  // APNG: acTL before the pixels says how many frames there are.
  const control = new Uint8Array(20);
  new DataView(control.buffer).setUint32(0, 8);
  control.set(new TextEncoder().encode("acTL"), 4);
  const apng = (frames: number) => {
    new DataView(control.buffer).setUint32(8, frames);
    return Uint8Array.from([
      ...still.slice(0, 33),
      ...control,
      ...still.slice(33),
    ]);
  };
  const moving = async (bytes: Uint8Array) =>
    (await decodePicture(bytes)).moving ?? false;
  assertEquals(await moving(still), false);
  assertEquals(await moving(apng(1)), false);
  assertEquals(await moving(apng(3)), true);
  assertEquals(await moving(await Deno.readFile(at("two-frames.webp"))), true);
  assertEquals(await moving(await Deno.readFile(at("lossy.webp"))), false);
  assertEquals(await moving(await Deno.readFile(at("lossy.avif"))), false);
  await inFolder(async (folder) => {
    await Deno.writeFile(`${folder}/a.png`, apng(3));
    const examples = await readExamples(folder, { size: 16 });
    assertEquals(firstFrames(examples), [
      "of an animation only the first frame is used: a.png",
    ]);
  });
});

Deno.test("options as other programs call them", () => {
  const near = (option: string, expected: string) => {
    const { message } = assertThrows(
      () => trainCommand.parse(["--name", "a", "--images", ".", option, "1"]),
      Error,
    );
    assert(message.includes(expected), message);
  };
  near("--lr_unet", "perhaps --lr-unet, got --lr_unet");
  near("--network_dim", "perhaps --rank");
  near("--lr", "perhaps --lr-embedding, --lr-text, --lr-unet");
  near("--images-folder", "perhaps --images,");
  near("--max_train_steps", "perhaps --steps,");
  near("--instance_prompt", "perhaps --caption,");
  near("--lr_warmup_steps", "perhaps --warmup,");
  near("--lr_num_cycles", "perhaps --cycles,");
  near("--mixed_precision", "perhaps --half,");
  near("--validation_prompt", "perhaps --validation-prompt,");
  // What this command does not have is not proposed.
  near("--guidance_scale", "a known option (--help), got --guidance_scale");
  near("--quux", "a known option (--help), got --quux");
  const rate = ["--name", "a", "--images", ".", "--scheduler"];
  assertEquals(
    trainCommand.parse([...rate, "cosine_with_restarts", "--cycles=2"])!
      .scheduler,
    "cosine-with-restarts",
  );
  const sampler = (name: string) =>
    sampleCommand.parse(["--prompt", "x", "--sampler", name])!.sampler;
  assertEquals(
    ["Euler a", "DPM++ 2M Karras", "euler_ancestral", "uni_pc", "DDIM"].map(
      sampler,
    ),
    ["euler_a", "dpmpp_2m_karras", "euler_a", "unipc", "ddim"],
  );
  const dtype = (name: string) =>
    trainCommand.parse(["--name", "a", "--images", ".", "--dtype", name])!
      .dtype;
  assertEquals(
    ["fp16", "bf16", "float32", "half", "F16"].map((n) => `${dtype(n)}`),
    ["F16", "BF16", "F32", "F16", "F16"],
  );
  assertThrows(() => dtype("int8"), Error, "--dtype F32, F16, BF16");
  assertThrows(
    () => parseConcept("sample", "a.safetensors:0.8"),
    Error,
    "--concept FILE,alpha=0.8",
  );
  assertThrows(
    () => parseConcept("sample", "a.safetensors,weight=0.8"),
    Error,
    "name, trigger, class, alpha after --concept FILE, got weight=0.8",
  );
});

Deno.test("outputs that cannot be are refused before work", () =>
  inFolder(async (folder) => {
    await Deno.mkdir(`${folder}/there.safetensors`);
    await Deno.mkdir(`${folder}/locked`, { mode: 0o555 });
    const lora = fixturePath("lora/edlora_official.safetensors");
    for (
      const [out, why] of [
        [`${folder}/there.safetensors`, "expected a file, got a folder"],
        ["/proc/none/x.safetensors", "Cannot write"],
      ]
    ) {
      const { code, error } = await said(
        ...["convert", lora, out, "--to", "kohya", "--without-tokens"],
        ...["--model", MODEL],
      );
      assertEquals(code, 1);
      assert(error.includes(why), error);
      assertEquals(error.split("\n").length, 1);
    }
    for (
      const [args, why] of [
        [["--steps", "0"], "--steps a whole number from 1"],
        [["--steps", "-3"], "--steps a whole number from 1 to 1000, got -3"],
        [["--steps", "1e9999"], "--steps a whole number"],
        [["--count", "1.5"], "--count a whole number"],
        [["--size", "0x64"], "--size such as 512"],
        [["--size", "64*64"], "--size such as 512"],
        [["--guidance", "NaN"], "--guidance a number"],
        [["--sampler", "DPM fast"], "--sampler"],
      ] as [string[], string][]
    ) {
      const { code, error } = await draw(folder, MODEL, ...args);
      assert(code > 0 && error.includes(why), `${args}: ${code} ${error}`);
    }
  }));
