/**
 * Networks with their intermediate activations, and the tokenizer.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { disposeTree } from "../../src/core/tree.ts";
import { decode, drawLatent, encode } from "../../src/models/autoencoder.ts";
import { load } from "../../src/models/checkpoint.ts";
import {
  crossAttentionSites,
  parseClipConfig,
} from "../../src/models/config.ts";
import {
  type Clip,
  clipSpec,
  imageEmbedding,
  normalise,
  textEmbedding,
  visionModel,
} from "../../src/models/image_encoder.ts";
import {
  pickRows,
  pooledPositions,
  textEncoder,
} from "../../src/models/text_encoder.ts";
import { unet } from "../../src/models/unet.ts";
import { openComponent } from "../../src/io/folder.ts";
import {
  type Check,
  compare,
  deviation,
  exact,
  type Line,
  notCovered,
} from "./check.ts";

/** Text states; see the fixtures' `expected/text_encoder`. */
const text: Check = {
  id: "text_encoder",
  files: ["expected/text_encoder.safetensors"],
  async *run(context) {
    const g = await context.fixture.golden("expected/text_encoder.safetensors");
    const { params, config } = (await context.model()).textEncoder;
    const ids = g.rows("input_ids");
    const states = tf.tidy(() => {
      const { last, hidden } = textEncoder(params, config, ids);
      const pooler = pickRows(last, pooledPositions(config, ids));
      return { last, hidden: [...hidden], pooler };
    });
    const figure = /(^|\.)text_f(32_f)?64/;
    const outputs: [string, tf.Tensor][] = [
      ...states.hidden.map((h, i) =>
        [`hidden_states.${i}`, h] as [string, tf.Tensor]
      ),
      ["last_hidden_state", states.last],
      ["pooler_output", states.pooler],
    ];
    const spread = deviation(g.values("last_hidden_state").data);
    for (const [name, actual] of outputs) {
      if (!g.has(name)) {
        actual.dispose();
        continue;
      }
      const expected = g.values(name);
      const factor = Math.max(1, deviation(expected.data) / spread);
      yield await compare(
        `text_encoder/${name}`,
        actual,
        expected,
        context.tolerance(figure, expected.data, factor),
      );
    }
  },
};

const UNET_FIGURE = /(^|\.)unet_f(32_f)?64/;

/** Output of the UNet at every timestep stated in a tensor's name. */
const unetOutputs: Check = {
  id: "unet",
  files: ["expected/unet.safetensors"],
  async *run(context) {
    const g = await context.fixture.golden("expected/unet.safetensors");
    const { params, config } = (await context.model()).unet;
    const sample = g.nhwc("sample");
    const states = g.tensor<tf.Tensor3D>("encoder_hidden_states");
    for (const name of g.names) {
      const match = name.match(/^out\.t([\d_]+)$/);
      if (!match) continue;
      const timesteps = match[1].split("_").map(Number);
      const out = tf.tidy(() =>
        unet(params, config, sample, timesteps, states)
      );
      const expected = g.values(name);
      yield await compare(
        `unet/${name}`,
        out,
        expected,
        context.tolerance(UNET_FIGURE, expected.data),
        "nhwc",
      );
    }
    tf.dispose([sample, states]);
  },
};

/** Intermediate activations of batch item 0. */
const unetActivations: Check = {
  id: "unet/activations",
  files: [
    "expected/unet.safetensors",
    "expected/unet_activations.safetensors",
  ],
  async *run(context) {
    const g = await context.fixture.golden("expected/unet.safetensors");
    const seen = await context.fixture.golden(
      "expected/unet_activations.safetensors",
    );
    const { params, config } = (await context.model()).unet;
    const timesteps = g.integers("timesteps");
    const found = new Map<string, tf.Tensor>();
    tf.tidy(() => {
      unet(
        params,
        config,
        g.nhwc("sample"),
        timesteps,
        g.tensor<tf.Tensor3D>("encoder_hidden_states"),
        {
          activation: (path, value) => {
            // Attention of the first block is also known by a shorter name.
            const name = seen.has(path)
              ? path
              : path.replace(".transformer_blocks.0.", ".");
            if (!seen.has(name)) return;
            const size = value.shape.map(() => -1);
            size[0] = 1;
            found.set(
              name,
              tf.keep(tf.slice(value, value.shape.map(() => 0), size)),
            );
          },
        },
      );
    });
    const spread = deviation(
      g.values(`out.t${timesteps.join("_")}`).data,
    );
    for (const name of seen.names) {
      if (name === "timesteps") {
        yield exact(
          "unet/activations/timesteps",
          timesteps,
          seen.integers(name),
        );
        continue;
      }
      const expected = seen.values(name);
      const actual = found.get(name);
      if (!actual) {
        yield notCovered(
          `unet/activations/${name}`,
          "the UNet reports no activation of this name",
        );
        continue;
      }
      found.delete(name);
      // The figure is about the output; deeper inside, numbers are larger.
      const factor = Math.max(1, deviation(expected.data) / spread);
      yield await compare(
        `unet/activations/${name}`,
        actual,
        expected,
        context.tolerance(UNET_FIGURE, expected.data, factor),
        expected.shape.length === 4 ? "nhwc" : "same",
      );
    }
    tf.dispose([...found.values()]);
  },
};

/** Encoder, posterior and decoder at every size in the file. */
const vae: Check = {
  id: "vae",
  files: ["expected/vae.safetensors"],
  async *run(context) {
    const g = await context.fixture.golden("expected/vae.safetensors");
    const { params, config } = (await context.model()).autoencoder;
    const sizes = new Set(
      g.names.map((name) => name.slice(0, Math.max(0, name.lastIndexOf(".")))),
    );
    for (const size of sizes) {
      const at = (name: string) => size === "" ? name : `${size}.${name}`;
      const figure = (part: string) =>
        new RegExp(
          `vae_${part}_f(32_f)?64.*${size.replaceAll(".", "\\.")}$`,
        );
      const check = async (
        part: "enc" | "dec",
        name: string,
        actual: tf.Tensor,
        factor = 1,
      ) => {
        const expected = g.values(at(name));
        return await compare(
          `vae/${at(name)}`,
          actual,
          expected,
          context.tolerance(
            context.figure(figure(part))
              ? figure(part)
              : new RegExp(`vae_${part}`),
            expected.data,
            factor,
          ),
          "nhwc",
        );
      };
      if (g.has(at("image"))) {
        const posterior = tf.tidy(() => {
          const image = g.nhwc(at("image"));
          const { mean, logvar, moments } = encode(params, config, image);
          const sample = drawLatent(
            { mean, logvar, moments },
            g.nhwc(at("noise")),
          );
          return { mean, logvar, moments, sample };
        });
        for (const [name, actual] of Object.entries(posterior)) {
          yield await check("enc", name, actual);
        }
      }
      if (g.has(at("z"))) {
        const decoded = tf.tidy(() => decode(params, config, g.nhwc(at("z"))));
        yield await check("dec", "decoded", decoded);
      }
    }
  },
};

/** Layer-wise states: who gets which index, and the output. */
const layerwise: Check = {
  id: "edlora_layerwise",
  files: [
    "edlora_layerwise/expected.safetensors",
    "edlora_layerwise/order.json",
  ],
  async *run(context) {
    const { params, config } = (await context.model()).unet;
    const order = await context.fixture.json<
      { cross_attention_order: string[] }
    >("edlora_layerwise/order.json");
    yield exact(
      "edlora_layerwise/order",
      crossAttentionSites(config).map(({ path }) => path),
      order.cross_attention_order,
    );
    const g = await context.fixture.golden(
      "edlora_layerwise/expected.safetensors",
    );
    const timesteps = g.integers("timesteps");
    const run = (index?: number) =>
      tf.tidy(() => {
        const all = g.tensor<tf.Tensor4D>("encoder_hidden_states");
        const [b, , tokens, width] = all.shape;
        const states = index === undefined
          ? all
          : tf.slice(all, [0, index, 0, 0], [b, 1, tokens, width])
            .reshape([b, tokens, width]) as tf.Tensor3D;
        return unet(params, config, g.nhwc("sample"), timesteps, states);
      });
    for (const name of g.names) {
      const match = name.match(/^out(?:_single_layer(\d+))?$/);
      if (!match) continue;
      const expected = g.values(name);
      yield await compare(
        `edlora_layerwise/${name}`,
        run(match[1] === undefined ? undefined : Number(match[1])),
        expected,
        context.tolerance(UNET_FIGURE, expected.data),
        "nhwc",
      );
    }
  },
};

/** Token ids, added tokens included. */
const tokenizer: Check = {
  id: "tokenizer",
  files: ["expected/tokenizer.json"],
  async *run(context) {
    const groups = await context.fixture.json<
      Record<string, Record<string, number[]>>
    >("expected/tokenizer.json");
    const base = (await context.model()).tokenizer;
    for (const [group, texts] of Object.entries(groups)) {
      const match = group.match(
        /(\d+)_added_tokens_([^\d]*)(\d+)_([^\d]*)(\d+)$/,
      );
      if (!match && group.includes("added")) {
        yield notCovered(
          `tokenizer/${group}`,
          "the group's name does not say which tokens were added",
        );
        continue;
      }
      const used = match
        ? base.withAddedTokens(
          Array.from(
            { length: Number(match[1]) },
            (_, i) => `<${match[2]}${Number(match[3]) + i}>`,
          ),
        )
        : base;
      let wrong = 0;
      let first: string | undefined;
      for (const [prompt, ids] of Object.entries(texts)) {
        const actual = used.encode(prompt, { maxLength: ids.length }).ids;
        const differ = ids.filter((id, i) => id !== actual[i]).length;
        wrong += differ;
        if (differ > 0) first ??= prompt;
      }
      yield {
        name: `tokenizer/${group}`,
        status: wrong === 0 ? "ok" : "FAIL",
        error: wrong,
        tolerance: 0,
        reason: first === undefined
          ? `ids of ${Object.keys(texts).length} texts`
          : `wrong ids, first in ${JSON.stringify(first)}`,
      } satisfies Line;
    }
  },
};

/** CLIP's towers, embeddings and score. */
const clip: Check = {
  id: "clip",
  files: ["clip/config.json", "clip/expected.safetensors"],
  async *run(context) {
    const g = await context.fixture.golden("clip/expected.safetensors");
    const { config: json, file } = await openComponent(
      context.fixture.folder,
      "clip",
    );
    context.consumed.add("clip/model.safetensors");
    const config = parseClipConfig(json);
    let params: Clip;
    try {
      params = await load<Clip>(clipSpec(config), file, { what: "CLIP" });
    } finally {
      file.close();
    }
    const outputs = tf.tidy(() => {
      const ids = g.rows("input_ids");
      const pixels = g.nhwc("pixel_values");
      const vision = visionModel(
        params.vision_model,
        config.vision_config,
        pixels,
      );
      const image = imageEmbedding(params, config, pixels);
      const text = textEmbedding(params, config, ids);
      const imageUnit = normalise(image);
      const textUnit = normalise(text);
      const cosine = tf.matMul(imageUnit, tf.transpose(textUnit));
      return {
        vision_embeddings_pre_ln: vision.embeddings,
        vision_last_hidden_state: vision.last,
        vision_pooler_output: vision.pooled,
        image_embeds: image,
        text_embeds: text,
        image_embeds_normalised: imageUnit,
        text_embeds_normalised: textUnit,
        cosine_image_text: cosine,
        logits_per_image: cosine.mul(params.logit_scale.exp()),
        clip_score: cosine.mul(100).maximum(0),
      };
    });
    const [logitScale] = await params.logit_scale.data();
    disposeTree(params);
    for (const [name, actual] of Object.entries(outputs)) {
      if (!g.has(name)) {
        actual.dispose();
        continue;
      }
      const expected = g.values(name);
      // A cosine's rounding follows the unit vectors, not its own spread over
      // a handful of pairs; scores and logits are multiples of a cosine.
      const scale = {
        cosine_image_text: 1,
        logits_per_image: Math.exp(logitScale),
        clip_score: 100,
      }[name];
      const tolerance = scale === undefined
        ? context.tolerance(/clip.*f(32_f)?64/, expected.data)
        : {
          value: 1e-5 * scale,
          source: `1e-5 of a cosine × ${scale.toPrecision(3)}`,
        };
      yield await compare(`clip/${name}`, actual, expected, tolerance);
    }
  },
};

/** Every check of single networks. */
export const MODEL_CHECKS: readonly Check[] = [
  tokenizer,
  text,
  unetOutputs,
  unetActivations,
  vae,
  layerwise,
  clip,
];
