/**
 * Masks as people make them: white on black, or a cut-out.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Pixels } from "./png.ts";
import { resize } from "./resize.ts";

/**
 * One channel of a mask: 255 inside, 0 outside.
 *
 * Where alpha differs between pixels, it is the mask, whatever the colours: a
 * cut-out, or a shape painted on an empty layer. Pure black and white with
 * some of both, on a layer that does not fill the picture, is a drawn mask
 * with nothing outside it. Else the brightest of red, green and blue counts,
 * so that a mask painted in one colour is one. Labels 0 and 1 are black and
 * white.
 *
 * @param image 1 to 4 channels.
 *
 * @example
 * ```ts ignore
 * const mask = maskOf(await readPicture("masks/fox.png"));
 * ```
 */
export function maskOf(image: Pixels): Pixels {
  const { width, height, channels, data } = image;
  const count = width * height;
  const colours = channels - (channels % 2 === 0 ? 1 : 0);
  const light = new Uint8Array(count);
  const alpha = new Uint8Array(count).fill(255);
  for (let i = 0, at = 0; i < count; i++, at += channels) {
    for (let k = 0; k < colours; k++) {
      light[i] = Math.max(light[i], data[at + k]);
    }
    if (colours < channels) alpha[i] = data[at + colours];
  }
  const painted = alpha.some((value) => value !== alpha[0]);
  const mask = !painted
    ? light.map((value, i) => alpha[i] === 0 ? 0 : value)
    : isDrawn(image, light, alpha)
    ? light.map((value, i) => Math.round(value * alpha[i] / 255))
    : alpha;
  const top = mask.reduce((most, value) => Math.max(most, value), 0);
  return {
    width,
    height,
    channels: 1,
    data: top === 1 ? mask.map((value) => 255 * value) : mask,
  };
}

/** Whether what is opaque is pure black and pure white, and both. */
function isDrawn(
  { channels, data }: Pixels,
  light: Uint8Array,
  alpha: Uint8Array,
): boolean {
  let [dark, bright] = [false, false];
  for (let i = 0; i < light.length; i++) {
    if (alpha[i] < 128) continue;
    const own = data.subarray(i * channels, (i + 1) * channels - 1);
    if (light[i] < 16) dark = true;
    else if (own.every((value) => value > 239)) bright = true;
    else return false;
  }
  return dark && bright;
}

/** How far the shapes may differ, besides a pixel: small masks round much. */
const LEEWAY = 0.03;

/**
 * A mask at the size of its picture, if it has the picture's shape.
 *
 * @param mask One channel.
 * @param picture The picture's size in pixels.
 * @param name What to call the mask in messages.
 * @throws If the shapes differ by more than the rounding of a pixel,
 * or by more than 3 %.
 *
 * @example
 * ```ts ignore
 * const mask = fitMask(maskOf(await readPicture("masks/fox.png")), photo);
 * ```
 */
export function fitMask(
  mask: Pixels,
  picture: Pick<Pixels, "width" | "height">,
  name = "a mask",
): Pixels {
  const { width, height } = picture;
  const off = Math.abs(mask.width * height - mask.height * width);
  const whole = Math.max(mask.width * height, mask.height * width);
  if (off > Math.max(width, height) || off > LEEWAY * whole) {
    throw cannot(
      `lay ${name} over its picture`,
      `the picture's ${width}×${height}, or that shape in another size`,
      `${mask.width}×${mask.height}`,
    );
  }
  return resize(mask, width, height, "bilinear");
}
