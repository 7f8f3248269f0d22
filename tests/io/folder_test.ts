import { assert, assertEquals, assertRejects } from "@std/assert";
import { fold, key, stream } from "../../src/core/random.ts";
import { joinPath, writeAtomic, writeJson } from "../../src/io/files.ts";
import {
  componentFile,
  openComponent,
  weightsName,
} from "../../src/io/folder.ts";
import {
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../../src/io/safetensors.ts";
import { inFolder } from "../helpers.ts";

function one(value: number): RawTensor {
  return {
    dtype: "F32",
    shape: [1],
    data: new Uint8Array(new Float32Array([value]).buffer),
  };
}

Deno.test("weights are found by name, the asked variant first", () =>
  inFolder(async (root) => {
    const unet = (name: string) => joinPath(root, "unet", name);
    const find = (variant?: string) => weightsName(root, "unet", { variant });
    await writeAtomic(unet("diffusion_pytorch_model.bin"), "");
    await writeAtomic(unet("model.fp16.safetensors"), "");
    assertEquals(await find(), "model.fp16.safetensors");
    await writeAtomic(unet("model.safetensors"), "");
    assertEquals(await find(), "model.safetensors");
    await writeAtomic(unet("diffusion_pytorch_model.safetensors"), "");
    assertEquals(await find(), "diffusion_pytorch_model.safetensors");
    assertEquals(await find("fp16"), "model.fp16.safetensors");
    assertEquals(await find("ema"), "diffusion_pytorch_model.safetensors");
  }));

Deno.test("openComponent gives the configuration and the weights", () =>
  inFolder(async (root) => {
    await writeJson(joinPath(root, "vae", "config.json"), { act_fn: "silu" });
    const path = joinPath(
      root,
      "vae",
      "diffusion_pytorch_model.safetensors",
    );
    await writeSafetensors(path, [["a", one(3)]]);
    for (const [folder, name] of [[root, "vae"], [`${root}/vae`, ""]]) {
      const { config, file } = await openComponent(folder, name);
      assertEquals(config, { act_fn: "silu" });
      assertEquals(toFloat32(await file.read("a")), new Float32Array([3]));
      file.close();
    }
    await writeJson(joinPath(root, "vae", "config.json"), [1]);
    await assertRejects(
      () => openComponent(root, "vae"),
      Error,
      "vae/config.json",
    );
  }));

Deno.test("missing weights say what was looked for; pickles are refused", () =>
  inFolder(async (root) => {
    await assertRejects(
      () => componentFile(root, "unet"),
      Error,
      "Cannot load unet",
    );
    await Deno.mkdir(joinPath(root, "unet"));
    await assertRejects(
      () => componentFile(root, "unet"),
      Error,
      "diffusion_pytorch_model.fp16.safetensors",
    );
    await writeAtomic(joinPath(root, "unet", "pytorch_model.bin"), "");
    await assertRejects(
      () => componentFile(root, "unet"),
      Error,
      "pytorch_model.bin: pickle files can run any code",
    );
  }));

Deno.test("shards appear as one file", () =>
  inFolder(async (root) => {
    const at = (name: string) => joinPath(root, "unet", name);
    const first = "diffusion_pytorch_model-00001-of-00002.safetensors";
    const second = "diffusion_pytorch_model-00002-of-00002.safetensors";
    const index = "diffusion_pytorch_model.safetensors.index.json";
    const map = { a: first, b: second, c: first };
    const shards = async (weight_map: Record<string, string>) => {
      await writeJson(at(index), { metadata: { total_size: 12 }, weight_map });
      return await componentFile(root, "unet");
    };
    await writeSafetensors(at(first), [["a", one(1)], ["c", one(3)]], {
      format: "pt",
    });
    await assertRejects(() => shards(map), Error, second);
    await writeSafetensors(at(second), [["b", one(2)]]);
    const file = await shards(map);
    assertEquals([...file.entries.keys()].sort(), ["a", "b", "c"]);
    assertEquals(file.metadata, { format: "pt" });
    for (const [i, name] of ["a", "b", "c"].entries()) {
      assertEquals(toFloat32(await file.read(name))[0], i + 1);
    }
    await assertRejects(() => file.read("d"), Error, '"d"');
    file.close();
    await assertRejects(() => file.read("a"), Error, "closed");

    await assertRejects(
      () => shards({ ...map, d: second }),
      Error,
      "expected d in the shards",
    );
    await assertRejects(
      () => shards({ ...map, b: first }),
      Error,
      "expected b in the shards",
    );
    await assertRejects(
      () => shards({ b: second, a: first }),
      Error,
      '"c" in no shard',
    );
    for (const name of ["../model.safetensors", "/etc/passwd", "a.bin"]) {
      await assertRejects(
        () => shards({ a: name }),
        Error,
        "shards beside the index",
      );
    }
    await writeJson(at(index), { weight_map: [first] });
    await assertRejects(
      () => componentFile(root, "unet"),
      Error,
      "weight_map",
    );
  }));

Deno.test("600 mutated configurations and shard indices: an error or the same weights", () =>
  inFolder(async (root) => {
    const at = (name: string) => joinPath(root, "unet", name);
    const shard = "model-00001-of-00001.safetensors";
    const config = at("config.json");
    const index = at("model.safetensors.index.json");
    await writeSafetensors(at(shard), [["a", one(1)], ["b", one(2)]]);
    await writeJson(config, { channels: [32, 64], act_fn: "silu" });
    await writeJson(index, { weight_map: { a: shard, b: shard } });
    const draw = stream(fold(key(20240302), "config fuzz"));
    let refused = 0;
    for (let i = 0; i < 600; i++) {
      const path = i % 2 ? config : index;
      const content = await Deno.readFile(path);
      const bytes = content.slice();
      for (let n = 1 + draw.integer(3); n > 0; n--) {
        bytes[draw.integer(bytes.length)] = draw.integer(256);
      }
      const cut = draw.integer(3) ? bytes.length : draw.integer(bytes.length);
      await Deno.writeFile(path, bytes.slice(0, cut));
      try {
        const { config, file } = await openComponent(root, "unet");
        assert(typeof config === "object" && !Array.isArray(config));
        assertEquals([...file.entries.keys()], ["a", "b"]);
        assertEquals(toFloat32(await file.read("b")), new Float32Array([2]));
        file.close();
      } catch (error) {
        assert(
          error instanceof Error && error.message.startsWith("Cannot "),
          `mutation ${i}: ${error}`,
        );
        refused++;
      }
      await Deno.writeFile(path, content);
    }
    assert(refused > 300 && refused < 600, `${refused} refused`);
    (await openComponent(root, "unet")).file.close();
  }));
