/**
 * Weights of 8 bits with a scale beside them, as ComfyUI's tools write them:
 * `layer.weight` in fp8 and `layer.scale_weight` (or `layer.weight_scale`), whose
 * product is the weight.
 *
 * Reference: ComfyUI's `comfy/ops.py`, `fp8_ops` and `scaled_fp8_ops`.
 *
 * @module
 */
import { cannot, listed } from "../core/errors.ts";
import { type SafetensorsFile, toFloat32 } from "../io/safetensors.ts";

/** A scale of a weight. */
const SCALE = /^(.*\.)(scale_weight|weight_scale)$/;

/** What is beside scaled weights and no part of them. */
const BESIDE =
  /(^|\.)(scaled_fp8|scale_input|input_scale|scale_weight|weight_scale|comfy_quant)$/;

/** Scales by the names of their weights. */
function scalesOf(
  { entries }: Pick<SafetensorsFile, "entries">,
): Map<string, string> {
  const scales = new Map<string, string>();
  for (const key of entries.keys()) {
    const weight = SCALE.exec(key)?.[1];
    if (weight !== undefined && entries.has(`${weight}weight`)) {
      scales.set(`${weight}weight`, key);
    }
  }
  return scales;
}

/**
 * How many weights of a file have a scale beside them.
 *
 * @param file The file, or its header.
 */
export function scaledWeights(
  file: Pick<SafetensorsFile, "entries">,
): number {
  return scalesOf(file).size;
}

/**
 * A file whose scaled weights are read as what they stand for, in F32; scales,
 * markers and hints for activations are no tensors of it any more.
 *
 * @param file The file; nothing is read yet.
 * @param what What is being read, for messages.
 * @returns The file itself where it has no scales.
 * @throws If a scale is neither one number nor one an output.
 *
 * @example
 * ```ts ignore
 * const file = unscaled(await openSafetensors("unet_fp8_scaled.safetensors"));
 * ```
 */
export function unscaled<T extends SafetensorsFile>(
  file: T,
  what = "a scaled file",
): T {
  const scales = scalesOf(file);
  const marked = [...file.entries.keys()].some((key) =>
    /(^|\.)(scaled_fp8|comfy_quant)$/.test(key)
  );
  if (scales.size === 0 && !marked) return file;
  const count = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
  const wrong = [...scales].filter(([weight, scale]) => {
    const size = count(file.entries.get(scale)!.shape);
    return size !== 1 && size !== file.entries.get(weight)!.shape[0];
  });
  if (wrong.length > 0) {
    throw cannot(
      `read ${what}`,
      "scales of one number, or one an output",
      listed(
        wrong.map(([, key]) => `${key} [${file.entries.get(key)!.shape}]`),
      ),
    );
  }
  const entries = new Map(
    [...file.entries].filter(([key]) => !BESIDE.test(key)).map((
      [key, entry],
    ) => [
      key,
      scales.has(key)
        ? {
          ...entry,
          dtype: "F32" as const,
          begin: 0,
          end: 4 * count(entry.shape),
        }
        : entry,
    ]),
  );
  return {
    ...file,
    entries,
    async read(name: string, scratch?: Uint8Array) {
      const scale = scales.get(name);
      if (scale === undefined) return await file.read(name, scratch);
      const raw = await file.read(name);
      const factors = toFloat32(await file.read(scale));
      const values = toFloat32(raw).slice();
      const row = values.length / factors.length;
      for (let i = 0; i < values.length; i++) {
        values[i] *= factors[Math.floor(i / row)];
      }
      return {
        dtype: "F32" as const,
        shape: raw.shape,
        data: new Uint8Array(values.buffer),
      };
    },
    close: () => file.close(),
  };
}
