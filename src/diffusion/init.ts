/**
 * Pictures to start from: image-to-image and inpainting.
 *
 * Encodes a picture to a latent, converts `strength` to the step to start at,
 * and a mask to latent pixels that are repainted.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { maskOf } from "../io/mask.ts";
import type { Pixels } from "../io/png.ts";
import { cover, flatten } from "../io/resize.ts";
import { downsampleFactor, encode } from "../models/autoencoder.ts";
import type { Model } from "../models/model.ts";
import { greyOf } from "./condition_images.ts";
import { shapeMap } from "./regions.ts";

/**
 * Encodes images to scaled latents, the UNet's input. It uses the posterior's
 * mean, so that the latent does not depend on a seed. It is the inverse of
 * `decodeImages`, except for the autoencoder's error.
 *
 * @param model The model.
 * @param images [b, height, width, 3] in [0, 1].
 * @returns [b, h, w, c]; the caller's.
 *
 * @example
 * ```ts ignore
 * const init = encodeImages(model, images);
 * const [picture] = await generate(model, { prompts, init, strength: 0.6 });
 * ```
 */
export function encodeImages(
  model: Pick<Model, "autoencoder">,
  images: tf.Tensor4D,
): tf.Tensor4D {
  const { config, params } = model.autoencoder;
  return tf.tidy(() =>
    encode(params, config, images.mul(2).sub(1)).mean
      .mul(config.scaling_factor)
  ) as tf.Tensor4D;
}

/** A picture to start from, ready for the pipeline; owns tensors. */
export interface InitLatents {
  /** The picture [1, h, w, c]. */
  readonly init: tf.Tensor4D;
  /** 1 where it is repainted, [1, h, w, 1]. */
  readonly mask?: tf.Tensor4D;
}

/**
 * Makes latents of a picture and its mask, both cropped to the aspect ratio of `size`.
 *
 * A latent pixel is repainted if at least half of it is white.
 *
 * @param model The model.
 * @param picture Any size; transparent pixels become white.
 * @param mask Mask with the picture's aspect ratio, white where it is
 * repainted.
 * @param size Size of the drawn picture, in pixels.
 * @returns For `init` and `mask` of the pipeline; the caller's.
 * @throws If a side is not a multiple of the autoencoder's factor.
 *
 * @example
 * ```ts ignore
 * const start = initLatents(model, photo, mask, { width: 512, height: 512 });
 * const [picture] = await generate(model, { prompts: ["a hat"], ...start });
 * ```
 */
export function initLatents(
  model: Pick<Model, "autoencoder">,
  picture: Pixels,
  mask: Pixels | undefined,
  { width, height }: { readonly width: number; readonly height: number },
): InitLatents {
  const factor = downsampleFactor(model.autoencoder.config);
  const init = tf.tidy(() => {
    const { data } = cover(flatten(picture), width, height);
    const images = tf.tensor4d(
      Float32Array.from(data, (v) => v / 255),
      [1, height, width, 3],
    );
    return encodeImages(model, images);
  });
  if (!mask) return { init };
  const white = greyOf(cover(maskOf(mask), width, height, "bilinear"));
  const [h, w] = [height / factor, width / factor];
  return {
    init,
    mask: tf.tensor4d(shapeMap({ mask: white }, h, w), [1, h, w, 1]),
  };
}
