/**
 * Settings of a picture, stored in its PNG file: A1111's `parameters` for
 * people and other programs, and the layout for `sample --from`.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { textsOf, withTexts } from "../io/png_text.ts";
import { type FileSource, readSource, sourceName } from "../io/source.ts";
import { type Layout, layoutSeeds, layoutStrength } from "./layout.ts";

/** Keyword of the layout. */
const OURS = "mix_of_show";

/** A1111's names of samplers. */
const SAMPLER_NAMES: Readonly<Record<string, string>> = {
  ...{ ddim: "DDIM", ddpm: "DDPM", pndm: "PLMS", lcm: "LCM", heun: "Heun" },
  ...{ dpmpp_2m: "DPM++ 2M", dpmpp_2m_karras: "DPM++ 2M Karras" },
  ...{ unipc: "UniPC", unipc_karras: "UniPC Karras", lms: "LMS" },
  ...{ euler: "Euler", euler_karras: "Euler Karras", euler_a: "Euler a" },
  ...{ heun_karras: "Heun Karras", lms_karras: "LMS Karras" },
};

/** The settings of a picture. */
export interface PictureSettings {
  /** The layout, as written to the output folder. */
  readonly layout: unknown;
  /** The same with defaults. */
  readonly settings: Layout;
  /** Index of the picture in the layout. */
  readonly number: number;
  /** Its size in pixels. */
  readonly size: { readonly width: number; readonly height: number };
  /** The model's path or name, as given by the user. */
  readonly model: string;
}

/**
 * A1111's text about a picture: prompt, negative prompt, a line of settings.
 *
 * @param settings What is said.
 *
 * @example
 * ```ts
 * import { parseLayout } from "@mix-of-show/mix-of-show";
 * import { parametersText } from "@mix-of-show/mix-of-show/formats";
 *
 * const layout = { prompt: "a red fox", seed: 3 };
 * console.log(parametersText({
 *   ...{ layout, settings: parseLayout(layout), number: 0, model: "micro" },
 *   size: { width: 64, height: 64 },
 * }));
 * ```
 */
export function parametersText(
  { settings, number, size, model }: PictureSettings,
): string {
  const { prompt, negative, steps, sampler, guidance, clipSkip } = settings;
  const facts = {
    Steps: steps,
    Sampler: SAMPLER_NAMES[sampler] ?? sampler,
    "CFG scale": guidance,
    Seed: layoutSeeds(settings)[Math.floor(number / settings.count)],
    Size: `${size.width}x${size.height}`,
    Model: model.replace(/^.*[\\/](?=.)/, "").replace(/\.[a-z]+$/, ""),
    ...(clipSkip > 1 ? { "Clip skip": clipSkip } : {}),
    // Pictures of one seed differ by their number.
    ...(settings.count > 1 ? { Picture: number % settings.count } : {}),
    ...(settings.init && { "Denoising strength": layoutStrength(settings) }),
  };
  return [
    prompt,
    ...(negative === "" ? [] : [`Negative prompt: ${negative}`]),
    Object.entries(facts).map(([name, value]) => `${name}: ${value}`)
      .join(", "),
  ].join("\n");
}

/**
 * Puts the settings into a PNG: as `parameters` for people and other programs,
 * and as a layout for {@linkcode layoutIn}.
 *
 * @param png The file.
 * @param settings What is said.
 * @returns A file with the same pixels.
 * @throws If the file is no PNG.
 *
 * @example
 * ```ts ignore
 * const file = withSettings(encodePng(picture), {
 *   ...{ layout, settings: parseLayout(layout), number: 0, model: "micro" },
 *   size: picture,
 * });
 * ```
 */
export function withSettings(
  png: Uint8Array,
  settings: PictureSettings,
): Uint8Array {
  return withTexts(png, {
    parameters: parametersText(settings),
    [OURS]: JSON.stringify(settings.layout),
  });
}

/**
 * Reads the layout that a picture was drawn from.
 *
 * @param from The picture: path, URL, `Blob` or bytes.
 * @returns The layout as JSON.
 * @throws If it is no PNG with a layout in it.
 *
 * @example
 * ```ts ignore
 * const layout = parseLayout(await layoutIn("out/sample/0.png"));
 * ```
 */
export async function layoutIn(
  from: FileSource,
): Promise<Record<string, unknown>> {
  const what = `read the settings of ${sourceName(from, "a picture")}`;
  const texts = textsOf(await readSource(from));
  const text = texts.get(OURS);
  if (text === undefined) {
    throw cannot(
      what,
      "a PNG that sample has drawn",
      texts.has("parameters")
        ? "one that another program has drawn"
        : "no settings in it",
    );
  }
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    throw cannot(what, "a layout as JSON", text.slice(0, 80));
  }
}
