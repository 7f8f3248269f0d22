/**
 * Texts inside PNG files, where programs keep what a picture was drawn from.
 *
 * @module
 */
import { unzlibSync } from "fflate";
import { cannot } from "../core/errors.ts";
import { joined } from "../core/joined.ts";
import { pngChunks } from "./chunks.ts";
import { crc32 } from "./crc.ts";

/** First byte behind the signature and IHDR. */
const BEHIND_HEAD = 33;

/**
 * Puts texts into a PNG, before its pixels: `tEXt` where they are ASCII, else
 * `iTXt`, as Pillow writes and reads both.
 *
 * @param png The file.
 * @param texts By keyword: 1 to 79 Latin letters.
 * @returns A file with the same pixels.
 * @throws If the file is no PNG or a keyword is not one.
 *
 * @example
 * ```ts ignore
 * const file = withTexts(encodePng(picture), { parameters: "a fox\nSteps: 20" });
 * ```
 */
export function withTexts(
  png: Uint8Array,
  texts: Readonly<Record<string, string>>,
): Uint8Array {
  const what = "write a text into a PNG";
  const [head] = pngChunks(png);
  if (head?.kind !== "IHDR" || head.end + 4 !== BEHIND_HEAD) {
    throw cannot(what, "a PNG file", "another kind of file");
  }
  const chunks = Object.entries(texts).map(([keyword, text]) => {
    if (!/^[!-~](?:[ -~]{0,77}[!-~])?$/.test(keyword)) {
      throw cannot(what, "a keyword of 1 to 79 Latin letters", keyword);
    }
    // deno-lint-ignore no-control-regex
    const plain = /^[\x01-\x7e]*$/.test(text);
    // Behind the keyword of iTXt: not compressed, no language, no translation.
    const content = plain
      ? `${keyword}\0${text}`
      : `${keyword}\0\0\0\0\0${text}`;
    return chunk(plain ? "tEXt" : "iTXt", content);
  });
  return joined(Uint8Array, [
    png.subarray(0, BEHIND_HEAD),
    ...chunks,
    png.subarray(BEHIND_HEAD),
  ]);
}

function chunk(kind: string, text: string): Uint8Array {
  const body = new TextEncoder().encode(kind + text);
  const bytes = new Uint8Array(body.length + 8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, body.length - 4);
  bytes.set(body, 4);
  view.setUint32(body.length + 4, crc32(body));
  return bytes;
}

/**
 * The texts in a PNG.
 *
 * @param png The file.
 * @returns By keyword; of two with one keyword the first.
 *
 * @example
 * ```ts ignore
 * textsOf(await Deno.readFile("picture.png")).get("parameters");
 * ```
 */
export function textsOf(png: Uint8Array): Map<string, string> {
  const texts = new Map<string, string>();
  const latin = new TextDecoder("latin1"), utf8 = new TextDecoder();
  for (const { kind, start, end } of pngChunks(png)) {
    if (!["tEXt", "zTXt", "iTXt"].includes(kind)) continue;
    const content = png.subarray(start, end);
    const behind = (from: number) => content.indexOf(0, from) + 1;
    const at = behind(0);
    if (at === 0) continue;
    const keyword = latin.decode(content.subarray(0, at - 1));
    let text: string | undefined;
    if (kind === "tEXt") text = latin.decode(content.subarray(at));
    else if (kind === "zTXt") text = inflated(content.subarray(at + 1), latin);
    else {
      const language = behind(at + 2);
      const body = content.subarray(behind(language));
      text = content[at] === 1 ? inflated(body, utf8) : utf8.decode(body);
    }
    if (text !== undefined && !texts.has(keyword)) texts.set(keyword, text);
  }
  return texts;
}

/** A compressed text; nothing if it is broken. */
function inflated(bytes: Uint8Array, as: TextDecoder): string | undefined {
  try {
    return as.decode(unzlibSync(bytes));
  } catch {
    return undefined;
  }
}
