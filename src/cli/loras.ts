/**
 * LoRA files and the models they are for, told by configs alone.
 *
 * @module
 */
import { isModelFolder } from "../formats/load_model.ts";
import {
  type LoraBase,
  loraBase,
  type LoraBaseName,
} from "../formats/dialects/base.ts";
import { fittingBase } from "../formats/convert.ts";
import { joinPath, readJson } from "../io/files.ts";
import { openSafetensors } from "../io/safetensors.ts";
import { parseTextEncoderConfig, parseUNetConfig } from "../models/config.ts";
import { describeLdm } from "../formats/ldm_config.ts";
import { unscaled } from "../formats/scaled_fp8.ts";
import { EMBEDDED, KNOWN_BASES, localModel } from "./models.ts";

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
  if (await isModelFolder(path)) {
    const config = (part: string) =>
      readJson(joinPath(path, part, "config.json"));
    return {
      textEncoder: {
        config: parseTextEncoderConfig(await config("text_encoder")),
      },
      unet: { config: parseUNetConfig(await config("unet")) },
    };
  }
  using file = unscaled(await openSafetensors(path), path);
  const { textEncoder, unet } = describeLdm(file).configs;
  return { textEncoder: { config: textEncoder }, unet: { config: unet } };
}

/**
 * Finds the model that a LoRA is for.
 *
 * @param path The file or PEFT folder.
 * @param model `sd15`, `sd21` or a model; by default the first known one that
 * the LoRA fits.
 * @returns What it is called, and its configs.
 * @throws If the LoRA fits none: what is wrong for the one it fits best.
 */
export async function baseFor(
  path: string,
  model?: string,
): Promise<{ name: string; base: LoraBase }> {
  const names = model === undefined
    ? [...Object.keys(KNOWN_BASES), EMBEDDED]
    : [model];
  const candidates = await Promise.all(
    names.map(async (name) => ({ name, base: await configsOf(name) })),
  );
  return await fittingBase(path, candidates);
}
