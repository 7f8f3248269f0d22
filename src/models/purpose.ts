/**
 * What a UNet is for, told by its input: some take more than a latent.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { ModelParts } from "./model.ts";

/**
 * What a UNet is for whose input is not one latent.
 *
 * @param inputs Channels of its input.
 * @param latent Channels of a latent.
 * @returns Nothing for text to image.
 *
 * @example
 * ```ts
 * specialPurpose(9, 4); // "inpainting (9 input channels: latent, mask, masked latent)"
 * ```
 */
export function specialPurpose(
  inputs: number,
  latent: number,
): string | undefined {
  if (inputs === latent) return undefined;
  const [name, has] = inputs === 2 * latent + 1
    ? ["inpainting", "latent, mask, masked latent"]
    : inputs === 2 * latent
    ? ["editing by instructions", "latent, latent of the picture"]
    : inputs === latent + 1
    ? ["depth to image", "latent, depth map"]
    : inputs === latent + 3
    ? ["upscaling", "latent, picture"]
    : ["something else", `a latent has ${latent}`];
  return `${name} (${inputs} input channels: ${has})`;
}

/**
 * Makes sure that a model draws pictures from text alone.
 *
 * @param model The model.
 * @param what What is to be done, a verb phrase.
 * @throws If its UNet wants a mask, a picture or more beside the latent.
 */
export function assertTextToImage(
  model: Pick<ModelParts, "unet" | "autoencoder">,
  what: string,
): void {
  const purpose = specialPurpose(
    model.unet.config.in_channels,
    model.autoencoder.config.latent_channels,
  );
  if (purpose !== undefined) {
    throw cannot(what, "a model for text to image", `one for ${purpose}`);
  }
}
