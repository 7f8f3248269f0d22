/**
 * LoRA files and the models they are for, told by configs alone.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import {
  type LoraBase,
  loraBase,
  type LoraBaseName,
} from "../customize/formats/base.ts";
import { loadLora, type LoraFile } from "../customize/lora_formats.ts";
import { joinPath, readJson } from "../io/files.ts";
import { openSafetensors } from "../io/safetensors.ts";
import { parseTextEncoderConfig, parseUNetConfig } from "../models/config.ts";
import { describeLdm } from "../models/ldm.ts";
import { EMBEDDED, localModel } from "./models.ts";

/** Models that need no file, and what they are. */
export const KNOWN_BASES: Readonly<Record<LoraBaseName, string>> = {
  sd15: "Stable Diffusion 1.x",
  sd21: "Stable Diffusion 2.x",
};

/**
 * The configs of a model: `sd15`, `sd21`, a folder, a single file or a name on
 * the hub. No weights are read.
 *
 * @param spec Which model.
 * @throws If it is not there, or its configs are broken.
 */
export async function configsOf(spec: string): Promise<LoraBase> {
  if (Object.hasOwn(KNOWN_BASES, spec)) return loraBase(spec as LoraBaseName);
  const path = await localModel(spec);
  if ((await Deno.stat(path)).isDirectory) {
    const config = (part: string) =>
      readJson(joinPath(path, part, "config.json"));
    return {
      textEncoder: {
        config: parseTextEncoderConfig(await config("text_encoder")),
      },
      unet: { config: parseUNetConfig(await config("unet")) },
    };
  }
  const file = await openSafetensors(path);
  try {
    const { textEncoder, unet } = describeLdm(file).configs;
    return { textEncoder: { config: textEncoder }, unet: { config: unet } };
  } finally {
    file.close();
  }
}

/** A LoRA and the model it is for. */
export interface FittedLora {
  readonly lora: LoraFile;
  /** What was asked for, or what it fits. */
  readonly model: string;
  readonly base: LoraBase;
}

/**
 * Reads a LoRA for a model, or for the first known model that it fits.
 *
 * @param path The file or PEFT folder.
 * @param model `sd15`, `sd21` or a model; by default what fits.
 * @returns The LoRA; its tensors are the caller's.
 * @throws If it does not fit; one error that lists the keys.
 */
export async function fitLora(
  path: string,
  model?: string,
): Promise<FittedLora> {
  const candidates = model === undefined
    ? [...Object.keys(KNOWN_BASES), EMBEDDED]
    : [model];
  const reasons: string[] = [];
  for (const candidate of candidates) {
    const base = await configsOf(candidate);
    try {
      const lora = await loadLora(path, base);
      return { lora, model: candidate, base };
    } catch (error) {
      if (model !== undefined) throw error;
      reasons.push(error instanceof Error ? error.message : String(error));
    }
  }
  // All the same reason: the file itself is broken, whatever the model.
  if (new Set(reasons).size === 1) throw new Error(reasons[0]);
  throw cannot(
    `read ${path}`,
    `a LoRA of ${
      Object.values(KNOWN_BASES).join(", ")
    } or the embedded model (--model says another)`,
    `for sd15: ${reasons[0]}`,
  );
}
