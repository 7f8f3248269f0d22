/**
 * Mutated config.json files of every network and of the scheduler: refused with
 * a message, or a network that has exactly the parameters of its file and runs.
 */
import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import {
  fold,
  key,
  normal,
  type Stream,
  stream,
} from "../../src/core/random.ts";
import { disposeTree } from "../../src/core/tree.ts";
import {
  parsePeftConfig,
  peftConfig,
} from "../../src/formats/dialects/peft_config.ts";
import {
  parseSchedulerConfig,
  schedule,
} from "../../src/diffusion/schedule.ts";
import { parseJson } from "../../src/io/files.ts";
import {
  encodeSafetensors,
  openSafetensors,
} from "../../src/io/safetensors.ts";
import {
  type Autoencoder,
  autoencoderSpec,
  decode,
} from "../../src/models/autoencoder.ts";
import { load } from "../../src/models/checkpoint.ts";
import {
  parseAutoencoderConfig,
  parseClipConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
} from "../../src/models/config.ts";
import { clipSpec } from "../../src/models/image_encoder.ts";
import {
  type TextEncoder as ClipText,
  textEncoder,
  textEncoderSpec,
} from "../../src/models/text_encoder.ts";
import { type UNet, unet, unetSpec } from "../../src/models/unet.ts";
import { initialise, type Spec, specLeaves } from "../../src/nn/spec.ts";
import { forEachBackend } from "../helpers.ts";
import { toRaw } from "./raw.ts";

const SEED = 20261125;
/** Mutated configs of each kind. */
const MUTATIONS = 400;
/** No config may describe more parameters than this. */
const MOST_PARAMETERS = 200_000;

const UNET = {
  ...parseUNetConfig({
    sample_size: 4,
    block_out_channels: [4, 8],
    down_block_types: ["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types: ["UpBlock2D", "CrossAttnUpBlock2D"],
    layers_per_block: 1,
    norm_num_groups: 2,
    cross_attention_dim: 6,
    attention_head_dim: [2, 4],
  }),
};
const VAE = {
  ...parseAutoencoderConfig({
    block_out_channels: [4, 8],
    down_block_types: ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    up_block_types: ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    norm_num_groups: 2,
  }),
};
const TEXT = {
  ...parseTextEncoderConfig({
    vocab_size: 20,
    hidden_size: 6,
    intermediate_size: 8,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    max_position_embeddings: 7,
  }),
};

/** Values that fit nowhere, or nearly everywhere. */
const ODD: readonly unknown[] = [
  null,
  true,
  false,
  "",
  "silu",
  "relu6",
  -1,
  0,
  1,
  2,
  3,
  1.5,
  64,
  1e9,
  1e308,
  2 ** 53,
  [],
  {},
  [1],
  [2, 4],
  [4, 8, 8],
  [[]],
  [null],
  new Array(5000).fill(2),
  new Array(300).fill("DownBlock2D"),
];

/** Changes a document somewhere, or its text. */
function mutate(document: unknown, random: Stream): string {
  const pick = <T>(list: readonly T[]): T => list[random.integer(list.length)];
  const copy = structuredClone(document) as Record<string, unknown>;
  for (let n = 1 + random.integer(2); n > 0; n--) {
    let node: Record<string, unknown> = copy;
    let name = pick(Object.keys(node));
    // Into objects and lists about as often as not.
    for (;;) {
      const inner = node[name];
      if (
        inner === null || typeof inner !== "object" || random.integer(3) < 1
      ) {
        break;
      }
      const names = Object.keys(inner);
      if (names.length === 0) break;
      node = inner as Record<string, unknown>;
      name = pick(names);
    }
    const value = node[name];
    switch (random.integer(5)) {
      case 0:
        delete node[name];
        break;
      case 1:
        node[name] = typeof value === "number"
          ? pick([value + 1, value - 1, 2 * value, value / 2, -value])
          : pick(ODD);
        break;
      case 2:
        node[name] = node[pick(Object.keys(node))];
        break;
      default:
        node[name] = pick(ODD);
    }
    if (Object.keys(copy).length === 0) break;
  }
  const text = JSON.stringify(copy);
  if (random.integer(4) > 0) return text;
  const at = random.integer(text.length);
  return text.slice(0, at) + pick(["", "[", "}", '"', "9", "e9", "-", "\0"]) +
    text.slice(at + random.integer(3));
}

/** One kind of config: what it is made into. */
interface Kind {
  readonly name: string;
  readonly document: unknown;
  /** Parses the document and does with it what can be done. */
  readonly use: (json: unknown) => void | Promise<void>;
}

/** A network of a config must have the parameters of the file, and run. */
async function network<C, P>(
  document: unknown,
  parse: (json: unknown) => C,
  spec: (config: C) => Spec<P>,
  run: (params: P, config: C) => tf.Tensor,
): Promise<Kind["use"]> {
  const original = spec(parse(document));
  const params = initialise(original, key(1));
  const bytes = encodeSafetensors(await toRaw(original, params));
  disposeTree(params);
  const names = specLeaves(original).map(([path]) => path).sort();
  return async (json) => {
    const config = parse(json);
    const wanted = spec(config);
    const leaves = specLeaves(wanted);
    assert(leaves.length <= MOST_PARAMETERS, `${leaves.length} parameters`);
    const file = await openSafetensors(bytes);
    let loaded: P;
    try {
      loaded = await load<P>(wanted, file);
    } catch (error) {
      // All missing keys are listed; that much the caller must take.
      throw new Error((error as Error).message.slice(0, 200));
    } finally {
      file.close();
    }
    try {
      assertEquals(leaves.map(([path]) => path).sort(), names);
      const values = tf.tidy(() => run(loaded, config));
      const data = await values.data();
      values.dispose();
      assert(data.every(Number.isFinite), "finite values");
    } finally {
      disposeTree(loaded);
    }
  };
}

async function kinds(): Promise<Kind[]> {
  const values = (...shape: number[]) =>
    tf.tensor(normal(key(2), shape.reduce((a, b) => a * b, 1)), shape);
  const low = {
    down: tf.zeros([4, 2]),
    up: tf.zeros([2, 4]),
    scale: 0.5,
  };
  const peft = peftConfig(
    new Map([["attn1.to_q", low], ["attn1.to_k", { ...low, scale: 1 }]]),
    "alpha/rank",
  );
  tf.dispose([low.down, low.up]);
  const scheduler = {
    _class_name: "PNDMScheduler",
    beta_start: 0.00085,
    beta_end: 0.012,
    beta_schedule: "scaled_linear",
    num_train_timesteps: 1000,
    prediction_type: "epsilon",
    set_alpha_to_one: false,
    skip_prk_steps: true,
    steps_offset: 1,
    clip_sample: false,
    trained_betas: null,
  };
  return [
    {
      name: "unet",
      document: UNET,
      use: await network<typeof UNET, UNet>(
        UNET,
        parseUNetConfig,
        unetSpec,
        (p, config) =>
          unet(
            p,
            config,
            values(1, 4, 4, config.in_channels) as tf.Tensor4D,
            [500],
            values(1, 3, 6) as tf.Tensor3D,
          ),
      ),
    },
    {
      name: "autoencoder",
      document: VAE,
      use: await network<typeof VAE, Autoencoder>(
        VAE,
        parseAutoencoderConfig,
        autoencoderSpec,
        (p, config) =>
          decode(
            p,
            config,
            values(1, 2, 3, config.latent_channels) as tf.Tensor4D,
          ),
      ),
    },
    {
      name: "text encoder",
      document: TEXT,
      use: await network<typeof TEXT, ClipText>(
        TEXT,
        parseTextEncoderConfig,
        textEncoderSpec,
        (p, config) =>
          textEncoder(p, config, [[18, 1, 2, 19, 19, 19, 19]]).last,
      ),
    },
    {
      name: "CLIP",
      document: {
        text_config: TEXT,
        vision_config: {
          hidden_size: 6,
          intermediate_size: 8,
          num_hidden_layers: 2,
          num_attention_heads: 2,
          image_size: 8,
          patch_size: 4,
        },
        projection_dim: 5,
      },
      use: (json) => {
        const config = parseClipConfig(json);
        const { length } = specLeaves(clipSpec(config));
        assert(length <= MOST_PARAMETERS);
      },
    },
    {
      name: "scheduler",
      document: scheduler,
      use: (json) => {
        const s = schedule(parseSchedulerConfig(json));
        assert(s.alphasCumprod.length <= 1_000_000);
        assert(s.alphasCumprod.every(Number.isFinite), "finite ᾱ");
      },
    },
    {
      name: "adapter_config",
      document: peft,
      use: (json) => void parsePeftConfig(json),
    },
  ];
}

forEachBackend(
  `${MUTATIONS} mutated configs a kind: refused, or a network that runs`,
  async () => {
    const before = tf.memory().numTensors;
    const memory = Deno.memoryUsage().heapTotal;
    const started = performance.now();
    for (const { name, document, use } of await kinds()) {
      await use(document);
      const random = stream(fold(key(SEED), name));
      let accepted = 0;
      for (let i = 0; i < MUTATIONS; i++) {
        const text = mutate(document, random);
        const what = `${name} ${i}: ${text.slice(0, 2000)}`;
        try {
          await use(parseJson(text, "config.json"));
          accepted++;
        } catch (error) {
          assert(
            error instanceof Error && error.message.startsWith("Cannot "),
            `${what}: ${(error as Error).stack}`,
          );
        }
      }
      assert(accepted > 0 && accepted < MUTATIONS, `${name}: ${accepted}`);
    }
    assertEquals(tf.memory().numTensors, before);
    const grown = Deno.memoryUsage().heapTotal - memory;
    assert(grown < 256 * 2 ** 20, `${grown} bytes`);
    // A few seconds alone; a hang would be minutes.
    assert(performance.now() - started < 120_000, "time");
  },
  ["wasm"],
);
