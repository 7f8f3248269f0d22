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
} from "../formats/dialects/base.ts";
import { disposeLora, loadLora } from "../formats/lora.ts";
import { joinPath, readJson } from "../io/files.ts";
import { openSafetensors } from "../io/safetensors.ts";
import { parseTextEncoderConfig, parseUNetConfig } from "../models/config.ts";
import { describeLdm } from "../formats/ldm.ts";
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

/**
 * Finds the model that a LoRA is for.
 *
 * @param path The file or PEFT folder.
 * @param model `sd15`, `sd21` or a model; by default the first known one that
 * the LoRA fits.
 * @returns What it is called, and its configs.
 * @throws If the LoRA does not fit; one error that lists the keys.
 */
export async function baseFor(
  path: string,
  model?: string,
): Promise<{ name: string; base: LoraBase }> {
  const candidates = model === undefined
    ? [...Object.keys(KNOWN_BASES), EMBEDDED]
    : [model];
  const reasons: string[] = [];
  for (const name of candidates) {
    const base = await configsOf(name);
    try {
      disposeLora(await loadLora(path, base));
      return { name, base };
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
