/**
 * What a picture was drawn from, inside its file: A1111's `parameters` for
 * people and other programs, and the layout for `sample --from`.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import {
  type Layout,
  layoutSeeds,
  layoutStrength,
} from "../diffusion/layout.ts";
import { readBytes } from "../io/files.ts";
import { textsOf, withTexts } from "../io/png_text.ts";

/** Keyword of the layout. */
const OURS = "mix_of_show";

/** What A1111 calls samplers. */
const SAMPLER_NAMES: Readonly<Record<string, string>> = {
  ...{ ddim: "DDIM", ddpm: "DDPM", pndm: "PLMS", lcm: "LCM", heun: "Heun" },
  ...{ dpmpp_2m: "DPM++ 2M", dpmpp_2m_karras: "DPM++ 2M Karras" },
  ...{ unipc: "UniPC", unipc_karras: "UniPC Karras", lms: "LMS" },
  ...{ euler: "Euler", euler_karras: "Euler Karras", euler_a: "Euler a" },
  ...{ heun_karras: "Heun Karras", lms_karras: "LMS Karras" },
};

/** What is said of a picture. */
export interface PictureSettings {
  /** The layout as it is written beside the pictures. */
  readonly layout: unknown;
  /** The same with defaults. */
  readonly settings: Layout;
  /** Its number among the layout's pictures. */
  readonly number: number;
  /** Its size in pixels. */
  readonly size: { readonly width: number; readonly height: number };
  /** The model as the user calls it. */
  readonly model: string;
}

/**
 * A1111's text about a picture.
 *
 * @param settings What is said.
 */
function parametersText(
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
    ...(settings.init
      ? { "Denoising strength": layoutStrength(settings) }
      : {}),
  };
  return [
    prompt,
    ...(negative === "" ? [] : [`Negative prompt: ${negative}`]),
    Object.entries(facts).map(([name, value]) => `${name}: ${value}`)
      .join(", "),
  ].join("\n");
}

/**
 * Puts the settings into a PNG.
 *
 * @param png The file.
 * @param settings What is said.
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
 * @param path The picture.
 * @returns The layout as JSON.
 * @throws If it is no PNG with a layout in it.
 */
export async function layoutIn(path: string): Promise<Record<string, unknown>> {
  const what = `read the settings of ${path}`;
  const texts = textsOf(await readBytes(path));
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
