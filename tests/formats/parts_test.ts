/**
 * Single files with networks missing, alone or beside other things.
 */
import type * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { disposeTree, leaves, type TreeLike } from "../../src/core/tree.ts";
import { schedule } from "../../src/diffusion/schedule.ts";
import {
  byBeginning,
  ldmExtras,
  loadNetworks,
  loadPart,
  loadSingleFile,
  saveSingleFile,
} from "../../src/formats/ldm.ts";
import { describeLdm, partsIn } from "../../src/formats/ldm_config.ts";
import { joinPath } from "../../src/io/files.ts";
import {
  openSafetensors,
  type RawTensor,
  writeSafetensors,
} from "../../src/io/safetensors.ts";
import { disposeModel, loadModel, type Model } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { fixturePath, forEachBackend, inFolder, noLeak } from "../helpers.ts";

const TOKENIZER = fixturePath("tiny-sd/tokenizer");
const COMPONENTS = ["textEncoder", "unet", "autoencoder"] as const;

async function contents(path: string): Promise<Map<string, RawTensor>> {
  const file = await openSafetensors(path);
  const all = new Map<string, RawTensor>();
  for (const name of file.entries.keys()) all.set(name, await file.read(name));
  file.close();
  return all;
}

async function metadataOf(path: string): Promise<Record<string, string>> {
  const file = await openSafetensors(path);
  file.close();
  return file.metadata;
}

async function assertSame(actual: TreeLike, expected: TreeLike) {
  const theirs = new Map(leaves(actual));
  const ours = leaves(expected);
  assertEquals([...theirs.keys()], ours.map(([path]) => path));
  for (const [path, tensor] of ours) {
    assertEquals(
      await theirs.get(path)!.data(),
      await (tensor as tf.Tensor).data(),
      path,
    );
  }
}

const empty: RawTensor = { dtype: "F32", shape: [0], data: new Uint8Array(0) };

forEachBackend("v_pred and ztsnr are read, said and saved", async () => {
  await noLeak(() =>
    inFolder(async (folder) => {
      const model = await tinySd();
      const path = joinPath(folder, "model.safetensors");
      await saveSingleFile(path, model);
      const all = await contents(path);
      assertEquals([all.has("v_pred"), all.has("ztsnr")], [false, false]);
      // As other tools mark a file of theirs: without any metadata.
      all.set("v_pred", empty).set("ztsnr", empty);
      await writeSafetensors(path, all, await metadataOf(path));
      const notes: string[] = [];
      const marked = await loadSingleFile(path, {
        tokenizer: TOKENIZER,
        onNote: (note) => notes.push(note),
      });
      const { scheduler } = marked;
      assertEquals(
        [
          scheduler.prediction_type,
          scheduler.rescale_betas_zero_snr,
          scheduler.timestep_spacing,
        ],
        ["v_prediction", true, "trailing"],
      );
      // ᾱ of the last timestep is zero, and is not without the marker.
      assertEquals(schedule(scheduler).alphasCumprod.at(-1), 0);
      assert(schedule(model.scheduler).alphasCumprod.at(-1)! > 0.001);
      assertEquals(notes, [
        "the marker v_pred: v-prediction",
        "the marker ztsnr: betas rescaled to zero terminal SNR, trailing " +
        "timesteps",
      ]);
      const again = joinPath(folder, "again.safetensors");
      await saveSingleFile(again, marked, { dtype: "F16" });
      const saved = await contents(again);
      assertEquals(saved.get("v_pred")?.shape, [0]);
      assertEquals(saved.get("ztsnr")?.shape, [0]);
      disposeModel(marked);
      disposeModel(model);
    })
  );
}, ["wasm"]);

Deno.test("markers of a file without metadata are described", () => {
  const entry = (shape: number[]) => ({
    dtype: "F16",
    shape,
    begin: 0,
    end: 0,
  });
  const header = (names: string[]) => ({
    entries: new Map([
      ["model.diffusion_model.input_blocks.0.0.weight", entry([320, 4, 3, 3])],
      ["model.diffusion_model.time_embed.0.weight", entry([1280, 320])],
      ...names.map((name) => [name, entry([0])] as const),
    ]),
  });
  const of = (...names: string[]) => {
    const { predictionType, zeroTerminalSnr } = describeLdm(header(names));
    return [predictionType, zeroTerminalSnr];
  };
  assertEquals(of(), ["epsilon", false]);
  assertEquals(of("v_pred"), ["v_prediction", false]);
  assertEquals(of("v_pred", "ztsnr"), ["v_prediction", true]);
});

forEachBackend("what stands beside a checkpoint is said once", async () => {
  await noLeak(() =>
    inFolder(async (folder) => {
      const model = await tinySd();
      const path = joinPath(folder, "model.safetensors");
      await saveSingleFile(path, model);
      const all = await contents(path);
      for (
        const name of [
          "cond_stage_model.logit_scale",
          "cond_stage_model.text_projection",
          "cond_stage_model.transformer.vision_model.post_layernorm.weight",
          "embedding_manager.string_to_param_dict.*",
          "embedding_manager.initial_embeddings.*",
          "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
          "betas",
        ]
      ) all.set(name, empty);
      await writeSafetensors(path, all, await metadataOf(path));
      const notes: string[] = [];
      const read = await loadNetworks(path, { onNote: (n) => notes.push(n) });
      await assertSame(
        read.unet.params as TreeLike,
        model.unet.params as TreeLike,
      );
      assertEquals(notes, [
        "6 tensors beside the model are not read: cond_stage_model.logit_scale, " +
        "cond_stage_model.text_projection, " +
        "cond_stage_model.transformer.vision_model.post_layernorm.weight, " +
        "embedding_manager (2), lora_te",
      ]);
      // Not so in a network: that would be another one.
      all.set("model.diffusion_model.extra", empty);
      await writeSafetensors(path, all, await metadataOf(path));
      await assertRejects(
        () => loadNetworks(path),
        Error,
        "1 unexpected: model.diffusion_model.extra",
      );
      disposeModel({ ...read, tokenizer: model.tokenizer });
      disposeModel(model);
    })
  );
}, ["wasm"]);

Deno.test("extras by their beginnings", () => {
  const keys = ["model_ema.a", "model_ema.b", "v_pred", "betas", "x"];
  assertEquals(ldmExtras(keys), ["model_ema.a", "model_ema.b", "x"]);
  assertEquals(byBeginning(ldmExtras(keys)), "model_ema (2), x");
});

forEachBackend("a file lacks networks, and others have them", async () => {
  await noLeak(() =>
    inFolder(async (folder) => {
      const model = await tinySd();
      const whole = joinPath(folder, "whole.safetensors");
      await saveSingleFile(whole, model);
      const all = await contents(whole);
      const metadata = await metadataOf(whole);
      const only = async (
        name: string,
        keep: RegExp,
        rename: (key: string) => string = (key) => key,
      ) => {
        const path = joinPath(folder, name);
        const kept = [...all].filter(([key]) => keep.test(key));
        await writeSafetensors(
          path,
          kept.map(([key, raw]): [string, RawTensor] => [rename(key), raw]),
          metadata,
        );
        return path;
      };
      const novae = await only("novae.safetensors", /^(?!first_stage)/);
      const unet = await only("unet.safetensors", /^model\./);
      const bare = await only(
        "bare.safetensors",
        /^model\./,
        (key) => key.replace("model.diffusion_model.", ""),
      );
      const vae = await only(
        "vae.safetensors",
        /^first_stage/,
        (key) => key.replace("first_stage_model.", ""),
      );
      const text = await only(
        "clip.safetensors",
        /^cond_stage/,
        (key) => key.replace("cond_stage_model.transformer.", ""),
      );
      await assertRejects(
        () => loadNetworks(novae),
        Error,
        "expected a VAE in it or from another file (--vae), got only a text " +
          "encoder and a UNet",
      );
      await assertRejects(
        () => loadNetworks(unet),
        Error,
        "expected a text encoder and a VAE in it or from another file " +
          "(--text-encoder, --vae), got only a UNet",
      );
      // Every way to have a network alone, all with the same numbers.
      const sources: Record<typeof COMPONENTS[number], string[]> = {
        textEncoder: [whole, text, fixturePath("tiny-sd/text_encoder")],
        unet: [whole, unet, bare, fixturePath("tiny-sd")],
        autoencoder: [
          whole,
          vae,
          fixturePath("tiny-sd"),
          // In diffusers' names, with its config beside it.
          fixturePath("tiny-sd/vae/diffusion_pytorch_model.safetensors"),
        ],
      };
      for (const component of COMPONENTS) {
        for (const source of sources[component]) {
          const part = await loadPart(component, source);
          assertEquals(part.config, model[component].config, source);
          await assertSame(
            part.params as TreeLike,
            model[component].params as TreeLike,
          );
          for (const [, tensor] of leaves(part.params as TreeLike)) {
            tensor.dispose();
          }
        }
      }
      const joined: Model = await loadSingleFile(bare, {
        tokenizer: TOKENIZER,
        parts: {
          autoencoder: await loadPart("autoencoder", vae),
          textEncoder: await loadPart("textEncoder", text),
        },
      });
      for (const component of COMPONENTS) {
        await assertSame(
          joined[component].params as TreeLike,
          model[component].params as TreeLike,
        );
      }
      await assertRejects(
        () => loadPart("autoencoder", unet),
        Error,
        "expected a VAE, got a UNet",
      );
      await assertRejects(
        () => loadPart("unet", joinPath(folder, "none")),
        Error,
        "a file or folder that exists",
      );
      const replaced = await loadModel(fixturePath("tiny-sd"), {
        parts: { autoencoder: model.autoencoder },
      });
      assert(replaced.autoencoder === model.autoencoder);
      disposeModel(replaced, model);
      disposeModel(joined);
      disposeModel(model);
    })
  );
}, ["wasm"]);

Deno.test("adapters are no networks, whatever their names begin with", () => {
  const of = (...keys: string[]) => [...partsIn(keys)];
  assertEquals(of("unet.down_blocks.0.attentions.0.lora_A.weight"), []);
  assertEquals(of("down_blocks.0.attentions.0.x.to_q.lora_A.weight"), []);
  assertEquals(of("text_model.encoder.layers.0.mlp.fc1.lora.down.weight"), []);
  assertEquals(
    of(
      "controlnet_cond_embedding.conv_in.weight",
      "down_blocks.0.resnets.0.norm1.weight",
    ),
    [],
  );
  assertEquals(
    of("model.diffusion_model.out.0.weight", "lora_te_x.lora_up.weight"),
    [["unet", "ldm"]],
  );
});

Deno.test("a UNet in diffusers' naming is not said to be unread", () =>
  inFolder(async (folder) => {
    const model = fixturePath("tiny-sd");
    const notes: string[] = [];
    const textEncoder = await loadPart("textEncoder", model);
    const autoencoder = await loadPart("autoencoder", model);
    const unet = joinPath(folder, "unet.safetensors");
    await Deno.copyFile(
      `${model}/unet/diffusion_pytorch_model.safetensors`,
      unet,
    );
    await Deno.copyFile(
      `${model}/unet/config.json`,
      joinPath(folder, "config.json"),
    );
    const networks = await loadNetworks(unet, {
      parts: { textEncoder, autoencoder },
      predictionType: "epsilon",
      onNote: (note) => notes.push(note),
    });
    assertEquals(notes, []);
    const whole = await loadModel(model);
    await assertSame(networks.unet.params, whole.unet.params);
    disposeModel(whole);
    disposeTree([
      ...[textEncoder, autoencoder].map(({ params }) => params),
      networks.unet.params,
    ]);
  }));
