/**
 * What else steers a UNet: T2I-Adapters, ControlNet, regions.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { attention } from "../../src/core/kernels/ops.ts";
import { disposeTree } from "../../src/core/tree.ts";
import {
  boxCells,
  regionalAttention,
  regionMaps,
} from "../../src/diffusion/regions.ts";
import type { Model } from "../../src/models/model.ts";
import {
  conditionEmbedding,
  controlNet,
  loadControlNet,
} from "../../src/models/controlnet.ts";
import {
  combineAdapters,
  loadT2IAdapter,
  t2iAdapter,
} from "../../src/models/t2i_adapter.ts";
import { unet, type UNetOptions } from "../../src/models/unet.ts";
import { textEncoder } from "../../src/models/text_encoder.ts";
import {
  type Check,
  compare,
  type Context,
  exact,
  type Line,
  notCovered,
  relative,
} from "./check.ts";
import { type Golden, toNhwc } from "./fixture.ts";

/** A condition image of bytes, [b, h, w, c] in [0, 1]. */
function condition(g: Golden, name: string): tf.Tensor4D {
  const { shape, data } = g.values(name);
  return toNhwc({ shape, data: data.map((byte) => byte / 255) });
}

/** The UNet on the file's own inputs. */
function run(
  model: Model,
  g: Golden,
  options: UNetOptions = {},
): tf.Tensor4D {
  const name = g.has("timesteps") ? "timesteps" : "timestep";
  return tf.tidy(() =>
    unet(
      model.unet.params,
      model.unet.config,
      g.nhwc("sample"),
      g.integers(name),
      g.tensor<tf.Tensor3D>("encoder_hidden_states"),
      options,
    )
  );
}

/** States of the file's ids, where it has both. */
async function* textLine(
  id: string,
  context: Context,
  model: Model,
  g: Golden,
): AsyncGenerator<Line> {
  if (!g.has("input_ids") || !g.has("encoder_hidden_states")) return;
  const expected = g.values("encoder_hidden_states");
  yield await compare(
    `${id}/encoder_hidden_states`,
    tf.tidy(() =>
      textEncoder(
        model.textEncoder.params,
        model.textEncoder.config,
        g.rows("input_ids"),
      ).last
    ),
    expected,
    context.tolerance(/(^|\.)text_f(32_f)?64/, expected.data),
  );
}

const adapters: Check = {
  id: "t2i_adapter",
  files: ["t2i_adapter/expected.safetensors"],
  async *run(context) {
    const { fixture } = context;
    const id = "t2i_adapter";
    const model = await context.model();
    const g = await fixture.golden(`${id}/expected.safetensors`);
    const features = new Map<string, tf.Tensor4D[]>();
    yield* textLine(id, context, model, g);
    for (const name of await fixture.list(id)) {
      if (!await fixture.has(`${id}/${name}/config.json`)) continue;
      const { params, config } = await loadT2IAdapter(
        fixture.path(id, name),
      );
      const image = condition(g, `${name}.condition_u8`);
      const own = tf.tidy(() => t2iAdapter(params, config, image));
      image.dispose();
      disposeTree(params);
      features.set(name, own);
      for (const [j, feature] of own.entries()) {
        const key = `${name}.feature${j}`;
        if (!g.has(key)) continue;
        const expected = g.values(key);
        yield await compare(
          `${id}/${key}`,
          feature.clone(),
          expected,
          relative(expected.data),
          "nhwc",
        );
      }
    }
    const all = [...features.keys()].sort();
    const multi = g.names.map((name) =>
      name.match(/^unet\.multi_((?:[\d.]+_)+)scale[\d.]+$/)
    ).find((match) => match !== null);
    const weights = multi?.[1].split("_").filter(Boolean).map(Number);
    for (const key of g.names) {
      if (!key.startsWith("unet.")) continue;
      const name = key.slice("unet.".length);
      const scale = Number(name.match(/_scale([\d.]+)$/)?.[1] ?? 1);
      const single = name.match(/^(.*?)_scale[\d.]+$/)?.[1];
      const numbers = name.match(/^multi_((?:[\d.]+_)+)scale/)?.[1].split("_")
        .filter(Boolean).map(Number);
      let options: (() => UNetOptions) | undefined;
      const scaled = (list: readonly tf.Tensor4D[]) => ({
        adapterFeatures: list.map((f) => f.mul(scale) as tf.Tensor4D),
      });
      const combined = (
        w: readonly number[],
        behaviour: "weighted" | "diffusers-0.19.3",
      ) =>
      () =>
        scaled(
          combineAdapters(all.map((a) => features.get(a)!), w, { behaviour }),
        );
      if (name === "base") options = () => ({});
      else if (single !== undefined && features.has(single)) {
        options = () => scaled(features.get(single)!);
      } else if (numbers?.length === all.length) {
        options = combined(numbers, "weighted");
      } else if (
        /^multi_diffusers0\.19\.3_/.test(name) &&
        weights?.length === all.length
      ) {
        options = combined(weights, "diffusers-0.19.3");
      }
      if (!options) {
        yield notCovered(`${id}/${key}`, "the name does not say what was run");
        continue;
      }
      const made = options;
      const expected = g.values(key);
      yield await compare(
        `${id}/${key}`,
        tf.tidy(() => run(model, g, made())),
        expected,
        context.tolerance(/adapter_f64/, expected.data),
        "nhwc",
      );
    }
    tf.dispose([...features.values()].flat());
  },
};

const control: Check = {
  id: "controlnet",
  files: ["controlnet/config.json", "controlnet/expected.safetensors"],
  async *run(context) {
    const { fixture } = context;
    const id = "controlnet";
    const model = await context.model();
    const g = await fixture.golden(`${id}/expected.safetensors`);
    for (const name of await fixture.list(id)) {
      if (/^diffusion_pytorch_model.*\.safetensors$/.test(name)) {
        context.consumed.add(`${id}/${name}`);
      }
    }
    const { params, config } = await loadControlNet(fixture.path(id));
    const image = condition(g, "condition_u8");
    const first = (x: tf.Tensor) =>
      tf.slice(x, x.shape.map(() => 0), [1, ...x.shape.slice(1).map(() => -1)]);
    const figure = /cn_f64/;
    // The figure is about the UNet's output; residuals are larger than that.
    const allowed = (expected: Float32Array) => {
      const own = relative(expected);
      const stated = context.tolerance(figure, expected);
      return own.value > stated.value ? own : stated;
    };
    const call = (options: { scale?: number; guess?: boolean }) =>
      controlNet(
        params,
        config,
        g.nhwc("sample"),
        g.integers("timesteps"),
        g.tensor<tf.Tensor3D>("encoder_hidden_states"),
        image,
        options,
      );
    const embedding = tf.tidy(() =>
      first(
        conditionEmbedding(params.controlnet_cond_embedding, config, image),
      )
    );
    const residuals = tf.tidy(() => {
      const { downResiduals, midResidual } = call({});
      return [...downResiduals, midResidual].map(first);
    });
    const named: [string, tf.Tensor][] = [
      ["cond_embedding.item0", embedding],
      ...residuals.slice(0, -1).map((r, i) =>
        [`down${i}.item0`, r] as [string, tf.Tensor]
      ),
      ["mid.item0", residuals.at(-1)!],
    ];
    for (const [name, actual] of named) {
      if (!g.has(name)) {
        actual.dispose();
        continue;
      }
      const expected = g.values(name);
      yield await compare(
        `${id}/${name}`,
        actual,
        expected,
        allowed(expected.data),
        "nhwc",
      );
    }
    for (const key of g.names) {
      const match = key.match(/^unet\.(base|(guess_mode_)?scale([\d.]+))$/);
      if (!match) continue;
      const expected = g.values(key);
      const options = { scale: Number(match[3]), guess: !!match[2] };
      yield await compare(
        `${id}/${key}`,
        tf.tidy(() =>
          run(model, g, match[1] === "base" ? {} : { ...call(options) })
        ),
        expected,
        context.tolerance(figure, expected.data),
        "nhwc",
      );
    }
    image.dispose();
    disposeTree(params);
  },
};

/** A case of regional.json. */
interface RegionCase {
  readonly height: number;
  readonly width: number;
  readonly feat?: readonly [number, number];
  readonly heads?: number;
  readonly boxes: readonly (readonly [number, number, number, number])[];
  readonly grid?: readonly (readonly number[])[];
}

const places = (boxes: RegionCase["boxes"]) =>
  boxes.map(([top, left, bottom, right]) => ({
    shape: { box: { top, left, bottom, right } },
  }));

const regional: Check = {
  id: "regional",
  files: ["regional/regional.json"],
  async *run(context) {
    const { fixture } = context;
    const cases = await fixture.json<Record<string, RegionCase>>(
      "regional/regional.json",
    );
    for (const [name, facts] of Object.entries(cases)) {
      if (name === "unet") continue;
      yield* rewrite(context, name, facts);
    }
    if (!cases.unet || !await fixture.has("regional/unet.safetensors")) return;
    const model = await context.model();
    const g = await fixture.golden("regional/unet.safetensors");
    const maps = regionMaps(places(cases.unet.boxes));
    const states = cases.unet.boxes.map((_, i) =>
      g.tensor<tf.Tensor4D>(`region${i}.encoder_hidden_states`)
    );
    for (const name of ["out", "out_no_region"]) {
      if (!g.has(name)) continue;
      const expected = g.values(name);
      yield await compare(
        `regional/unet/${name}`,
        run(
          model,
          g,
          name === "out"
            ? { crossAttend: regionalAttention(maps, states) }
            : {},
        ),
        expected,
        context.tolerance(/(^|\.)unet_f(32_f)?64/, expected.data),
        "nhwc",
      );
    }
    maps.dispose();
    tf.dispose(states);
  },
};

/** Attention with regions alone, heads in the batch. */
async function* rewrite(
  context: Context,
  name: string,
  facts: RegionCase,
): AsyncGenerator<Line> {
  const path = "regional/region_rewrite.safetensors";
  if (!await context.fixture.has(path)) {
    yield notCovered(`regional/${name}`, `not in this folder: ${path}`);
    return;
  }
  const g = await context.fixture.golden(path);
  const expected = g.values(`${name}.out`);
  const [height, width] = facts.feat ?? [0, 0];
  if (facts.grid) {
    yield exact(
      `regional/${name}/grid`,
      places(facts.boxes).map(({ shape }) => {
        const { top, left, bottom, right } = boxCells(shape.box, height, width);
        return [top, left, bottom, right];
      }),
      facts.grid,
    );
  }
  const maps = regionMaps(places(facts.boxes));
  const query = g.tensor<tf.Tensor3D>(`${name}.query`);
  const plain = g.tensor<tf.Tensor3D>(`${name}.hidden_states`);
  const keys = facts.boxes.map((_, i) =>
    g.tensor<tf.Tensor3D>(`${name}.region${i}.key`)
  );
  const values = facts.boxes.map((_, i) =>
    g.tensor<tf.Tensor3D>(`${name}.region${i}.value`)
  );
  const global = tf.zeros([query.shape[0], 1, 1]) as tf.Tensor3D;
  // The file has keys and values in place of states: a key stands for its
  // region's states, and the context's output is given.
  const hooks = regionalAttention(maps, keys)({
    index: 0,
    path: "",
    level: 0,
    height,
    width,
    heads: 1,
  });
  const out = tf.tidy(() => {
    const replace = hooks?.replace;
    if (!replace) return plain.clone();
    return replace(query, global, (part, states) => {
      const region = keys.indexOf(states);
      return region < 0 ? plain : attention(part, states, values[region], 1);
    });
  });
  yield await compare(
    `regional/${name}/out`,
    out,
    expected,
    relative(expected.data),
  );
  maps.dispose();
  tf.dispose([query, plain, global, ...keys, ...values]);
}

/** Every check of conditions. */
export const CONDITION_CHECKS: readonly Check[] = [adapters, control, regional];
