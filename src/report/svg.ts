/**
 * SVG as pixels: resvg (MPL-2.0, in WebAssembly, 2.5 MB) with the font DejaVu
 * Sans, both loaded when the first picture with text is drawn.
 *
 * @module
 */
import { cannot, reasonOf } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { readBytes } from "../io/files.ts";
import type { Pixels } from "../io/png.ts";
import { FONT } from "./text.ts";

const BINARY = "@resvg/resvg-wasm/index_bg.wasm";
const FONT_FILE =
  "@fontsource/dejavu-sans/files/dejavu-sans-latin-400-normal.woff2";

/** What draws: resvg, and the font. */
interface Renderer {
  readonly Resvg: typeof import("@resvg/resvg-wasm").Resvg;
  readonly font: Uint8Array;
}

let renderer: Promise<Renderer> | undefined;

/** Bytes of an installed package's file. */
async function bytesOf(file: string, version: string) {
  const url = machine.packageFile(file, version);
  if (!url) throw new Error("a page has plotly and HTML instead");
  return url.protocol === "file:"
    ? await readBytes(url)
    : new Uint8Array(await (await fetch(url)).arrayBuffer());
}

async function load(): Promise<Renderer> {
  const { initWasm, Resvg } = await import("@resvg/resvg-wasm");
  // A package is installed where something of it is imported.
  const { default: { version } } = await import(
    "@fontsource/dejavu-sans/package.json",
    { with: { type: "json" } }
  );
  const [binary, font] = await Promise.all([
    bytesOf(BINARY, "2.6.2"),
    bytesOf(FONT_FILE, version),
  ]);
  await initWasm(await WebAssembly.compile(binary));
  return { Resvg, font };
}

/**
 * Draws an SVG on white.
 *
 * @param svg The whole document; its size is that of the picture.
 * @returns An RGB picture.
 * @throws If it is no SVG, or resvg cannot be loaded, as in a page.
 */
export async function svgPixels(svg: string): Promise<Pixels> {
  renderer ??= load();
  let loaded: Renderer;
  try {
    loaded = await renderer;
  } catch (error) {
    renderer = undefined;
    throw cannot("draw text into a picture", "resvg", reasonOf(error));
  }
  const { Resvg, font } = loaded;
  const drawing = new Resvg(svg, {
    background: "white",
    font: { fontBuffers: [font], defaultFontFamily: FONT },
  });
  const image = drawing.render();
  const { width, height, pixels } = image;
  const data = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) data[3 * i + c] = pixels[4 * i + c];
  }
  image.free();
  drawing.free();
  return { width, height, channels: 3, data };
}
