/**
 * Training pictures of one of the embedded world's characters: what the other
 * examples train on. Run by itself it writes a folder of them, as `deno task
 * train` takes it: `0.png`, its caption `0.txt` and its mask `masks/0.png`.
 *
 *     deno run -P=local examples/concept_pictures.ts bobo out/pictures/bobo
 *
 * @module
 */
import { encodePng, type Example } from "@mix-of-show/mix-of-show";
import {
  conceptImages,
  identityOf,
  loadConceptArt,
} from "@mix-of-show/mix-of-show/micro";

/** The class word of a character, such as `animal`. */
export const classOf = (name: string): string => identityOf(name).class;

/** Pictures with captions, `{}` for the character, and masks of it. */
export async function conceptPictures(name: string): Promise<Example[]> {
  const art = await loadConceptArt();
  return conceptImages(name, "train", art).map((picture) => ({
    pixels: {
      width: picture.scene.side,
      height: picture.scene.side,
      channels: 3,
      data: picture.image,
    },
    captions: [picture.caption.replace("<TOKEN>", "{}")],
    mask: {
      width: picture.scene.side,
      height: picture.scene.side,
      data: Uint8Array.from(picture.mask, (alpha) => alpha > 0.5 ? 255 : 0),
    },
  }));
}

if (import.meta.main) {
  const [name = "bobo", folder = `out/pictures/${name}`] = Deno.args;
  await Deno.mkdir(`${folder}/masks`, { recursive: true });
  const pictures = await conceptPictures(name);
  for (const [i, { pixels, captions, mask }] of pictures.entries()) {
    await Deno.writeFile(`${folder}/${i}.png`, encodePng(pixels));
    await Deno.writeTextFile(`${folder}/${i}.txt`, `${captions[0]}\n`);
    await Deno.writeFile(
      `${folder}/masks/${i}.png`,
      encodePng({
        ...pixels,
        channels: 1,
        data: Uint8Array.from(mask!.data),
      }),
    );
  }
  console.log(`${folder}: ${pictures.length} pictures, class ${classOf(name)}`);
}
