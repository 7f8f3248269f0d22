/**
 * Writing LoRA files in every dialect: the reverse of reading them, from the same
 * names.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot, KeysError, listed } from "../core/errors.ts";
import {
  type Adapter,
  type Component,
  COMPONENTS,
  rankOf,
} from "../customize/lora.ts";
import { type LowRank, spectralGains } from "../nn/linear.ts";
import { joinPath, writePythonJson } from "../io/files.ts";
import {
  encodeFloat,
  encodeSafetensors,
  type RawTensor,
  writeSafetensors,
} from "../io/safetensors.ts";
import type { FileTarget } from "../io/source.ts";
import { toDisk } from "../models/checkpoint.ts";
import {
  diskShapes,
  layersOf,
  type LoraBase,
  type LoraLayers,
  ownShapes,
} from "./dialects/base.ts";
import { type Dialect, type DialectId, PREFIX } from "./dialects/dialect.ts";
import { peftConfig } from "./dialects/peft_config.ts";
import { encodeTokens } from "./dialects/tokens.ts";
import { ADAPTER_CONFIG, ADAPTER_MODEL, dialect, SCALE_RULE } from "./lora.ts";

const PEFT = dialect("peft");

/** What goes into a LoRA file. */
export interface LoraContent {
  /** The layers. */
  readonly adapter: Adapter;
  /** Learned tokens, for dialects that hold them. */
  readonly embeddings?: ReadonlyMap<string, tf.Tensor2D>;
}

/** A LoRA as named tensors and metadata. */
export interface EncodedLora {
  /** By name, in the order they are written. */
  readonly tensors: [string, RawTensor][];
  /** What goes into the header. */
  readonly metadata: Record<string, string>;
}

/** How a LoRA is written. */
export interface WriteLoraOptions {
  /**
   * Type on disk.
   *
   * @default "F32"
   */
  readonly dtype?: "F32" | "F16" | "BF16";
  /** Further metadata; it takes precedence. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/**
 * Names the tensors of a LoRA as a dialect does. Where the dialect has no α,
 * the scale is multiplied into `up`, so that a reader who adds `up·down` gets
 * the same change of weights.
 *
 * @param content Adapter and learned tokens.
 * @param base The model it is for, or only its configs.
 * @param to The dialect.
 * @param options Type on disk, further metadata.
 * @throws If the dialect cannot hold something: learned tokens, DoRA, a layer;
 * if a number is not finite or too large for the type.
 */
export async function encodeLora(
  content: LoraContent,
  base: LoraBase,
  to: DialectId,
  options: WriteLoraOptions = {},
): Promise<EncodedLora> {
  const d = dialect(to);
  const layers = layersOf(base);
  const { adapter, embeddings = new Map() } = content;
  const tokens = await encodeTokens(d, embeddings);
  checkLayers(d, adapter, layers);
  const metadata: Record<string, string> = {
    ...d.metadata?.(adapter, [...embeddings.keys()], layers),
    ...(adapter.textEncoder.size + adapter.unet.size > 0 &&
      { [SCALE_RULE]: d.scaleRule }),
    ...options.metadata,
  };
  const names = d.names(layers, { entries: new Map(), metadata });
  const tensors = await encodeLayers(
    d,
    adapter,
    layers,
    (component, path) => names(component, path)[0],
    options.dtype,
    d.parts.alpha && !d.readOnly?.includes("alpha") ? "tensors" : "folded",
  );
  const put = writer(d, options.dtype);
  return {
    tensors: [
      ...tokens.map(({ key, shape, values }) => put(key, shape, values)),
      ...tensors,
    ],
    metadata,
  };
}

/** Makes a tensor of a file, and sure that the type can hold its values. */
function writer(d: Dialect, dtype: WriteLoraOptions["dtype"] = "F32") {
  // Half of the step above 65504 rounds to infinity.
  const limit = dtype === "F16" ? 65520 : Infinity;
  return (
    key: string,
    shape: number[],
    values: Float32Array,
  ): [string, RawTensor] => {
    if (!values.every((v) => Math.abs(v) < limit)) {
      throw cannot(
        `write a LoRA as ${d.id}`,
        dtype === "F16" ? "finite values below 65520 (F16)" : "finite values",
        `others in ${key}`,
      );
    }
    return [key, { dtype, shape, data: encodeFloat(values, dtype) }];
  };
}

/** Makes sure that a dialect has names and places for everything. */
function checkLayers(d: Dialect, adapter: Adapter, layers: LoraLayers): void {
  const what = `write a LoRA as ${d.id}`;
  const problems: [string, string][] = [];
  for (const component of COMPONENTS) {
    for (const [path, low] of adapter[component]) {
      const site = layers.sites[component].get(path);
      const name = `${component} ${path}`;
      if (!site) {
        problems.push(["layers of the model", name]);
      } else if (!d.parts.down) {
        problems.push(["no layers", name]);
      } else if (
        low.magnitude &&
        (!d.parts.magnitude || d.readOnly?.includes("magnitude"))
      ) {
        problems.push(["no DoRA", `a magnitude at ${path}`]);
      } else if (
        low.magnitude &&
        !d.magnitudeShape?.(site, low.dora?.of ?? "output")
      ) {
        problems.push(["magnitudes of outputs", `of inputs at ${path}`]);
      } else if (
        (low.dora?.share ?? 1) !== 1 || (low.dora?.strength ?? 1) !== 1
      ) {
        problems.push(["DoRA at weight 1", `another at ${path}`]);
      }
    }
  }
  if (problems.length > 0) {
    const [expected] = problems[0];
    const all = problems.filter(([e]) => e === expected).map(([, got]) => got);
    throw new KeysError(cannot(what, expected, listed(all)).message, all);
  }
}

/** Multiplies the rows of `up` by the gains of their singular directions. */
async function foldSpectrum(up: Float32Array, low: LowRank): Promise<void> {
  const gains = tf.tidy(() => spectralGains(low.spectrum!));
  const factors = await gains.data();
  gains.dispose();
  const outputs = up.length / factors.length;
  for (let i = 0; i < up.length; i++) up[i] *= factors[Math.floor(i / outputs)];
}

/** The tensors of layers. */
async function encodeLayers(
  d: Dialect,
  adapter: Pick<Adapter, Component>,
  layers: LoraLayers,
  stemOf: (component: Component, path: string) => string | undefined,
  dtype: WriteLoraOptions["dtype"],
  scales: "tensors" | "folded" | "elsewhere",
): Promise<[string, RawTensor][]> {
  const put = writer(d, dtype);
  const raw: [string, RawTensor][] = [];
  for (const component of COMPONENTS) {
    for (const [path, low] of adapter[component]) {
      const site = layers.sites[component].get(path)!;
      const stem = stemOf(component, path);
      if (stem === undefined) {
        throw cannot(
          `write a LoRA as ${d.id}`,
          "layers the dialect can name",
          `${component} ${path}`,
        );
      }
      const rank = rankOf(low);
      const disk = diskShapes(site, rank);
      const own = ownShapes(site, rank);
      for (const part of ["down", "up"] as const) {
        if (!tf.util.arraysEqual(low[part].shape, own[part])) {
          throw cannot(
            `write a LoRA as ${d.id}`,
            `${part} [${own[part]}] of ${path}`,
            `[${low[part].shape}]`,
          );
        }
        const data = await low[part].data() as Float32Array;
        const values = low.spectrum ? data.slice() : data;
        const scale = part === "up" && scales === "folded" ? low.scale : 1;
        if (part === "up" && low.spectrum) await foldSpectrum(values, low);
        raw.push(put(
          stem + d.parts[part]![0],
          disk[part],
          toDisk(
            site.kind,
            own[part],
            scale === 1 ? values : values.map((v) => v * scale),
          ),
        ));
      }
      if (scales === "tensors") {
        raw.push(
          put(stem + d.parts.alpha![0], [], Float32Array.of(low.scale * rank)),
        );
      }
      if (low.magnitude) {
        raw.push(put(
          stem + d.parts.magnitude![0],
          d.magnitudeShape!(site, low.dora?.of ?? "output")!,
          await low.magnitude.data() as Float32Array,
        ));
      }
    }
  }
  return raw;
}

/**
 * A LoRA as the bytes of a safetensors file; see {@linkcode encodeLora}.
 *
 * @param content Adapter and learned tokens.
 * @param base The model it is for, or only its configs.
 * @param to The dialect.
 * @param options Type on disk, further metadata.
 */
export async function loraBytes(
  content: LoraContent,
  base: LoraBase,
  to: DialectId,
  options: WriteLoraOptions = {},
): Promise<Uint8Array> {
  const { tensors, metadata } = await encodeLora(content, base, to, options);
  return encodeSafetensors(tensors, { format: "pt", ...metadata });
}

/**
 * Writes a LoRA file, atomically; see {@linkcode encodeLora}.
 *
 * @param path The safetensors file: path, URL or stream.
 * @param content Adapter and learned tokens.
 * @param base The model it is for, or only its configs.
 * @param to The dialect.
 * @param options Type on disk, further metadata.
 */
export async function saveLora(
  path: FileTarget,
  content: LoraContent,
  base: LoraBase,
  to: DialectId,
  options: WriteLoraOptions = {},
): Promise<void> {
  const { tensors, metadata } = await encodeLora(content, base, to, options);
  await writeSafetensors(path, tensors, { format: "pt", ...metadata });
}

/**
 * Writes a LoRA as PEFT's own folders, atomically file by file: unlike in a
 * single file, scales stay apart from the weights, exactly, by the adapter's
 * own rule (rsLoRA included).
 *
 * @param folder The folder; `unet` and `text_encoder` below it where both have
 * layers.
 * @param content The adapter; learned tokens cannot be held.
 * @param base The model it is for, or only its configs.
 * @param options Type on disk, further metadata.
 * @throws As {@linkcode encodeLora}.
 */
export async function savePeftFolder(
  folder: string,
  content: LoraContent,
  base: LoraBase,
  options: WriteLoraOptions = {},
): Promise<void> {
  const { adapter } = content;
  const layers = layersOf(base);
  await encodeTokens(PEFT, content.embeddings ?? new Map());
  checkLayers(PEFT, adapter, layers);
  const used = COMPONENTS.filter((c) => adapter[c].size > 0);
  if (used.length === 0) throw cannot(`write ${folder}`, "layers", "none");
  const names = PEFT.names(layers, { entries: new Map() });
  const parts = await Promise.all(used.map(async (component) => ({
    at: used.length === 1 ? folder : joinPath(folder, PREFIX[component]),
    config: peftConfig(adapter[component], adapter.scaleRule),
    tensors: await encodeLayers(
      PEFT,
      {
        textEncoder: new Map(),
        unet: new Map(),
        [component]: adapter[component],
      },
      layers,
      (c, path) => names(c, path).find((n) => n.startsWith("base_model.")),
      options.dtype,
      "elsewhere",
    ),
  })));
  for (const { at, config, tensors } of parts) {
    await writeSafetensors(joinPath(at, ADAPTER_MODEL), tensors, {
      format: "pt",
      ...options.metadata,
    });
    await writePythonJson(joinPath(at, ADAPTER_CONFIG), config);
  }
}
