/**
 * `deno task art`: redraws the committed atlases from the pinned art packages.
 * The only user of those packages; everything else reads models/micro/art.
 *
 * @module
 */
import sharp from "npm:sharp@0.35.5";
import emojiData from "npm:unicode-emoji-json@0.9.0/data-by-emoji.json" with {
  type: "json",
};
import fluentFlatChars from "npm:@iconify-json/fluent-emoji-flat@1.2.6/chars.json" with {
  type: "json",
};
import fluentFlat from "npm:@iconify-json/fluent-emoji-flat@1.2.6/icons.json" with {
  type: "json",
};
import fluent from "npm:@iconify-json/fluent-emoji@1.2.7/icons.json" with {
  type: "json",
};
import fxemoji from "npm:@iconify-json/fxemoji@1.2.2/icons.json" with {
  type: "json",
};
import notoV1 from "npm:@iconify-json/noto-v1@1.2.5/icons.json" with {
  type: "json",
};
import notoChars from "npm:@iconify-json/noto@1.2.9/chars.json" with {
  type: "json",
};
import noto from "npm:@iconify-json/noto@1.2.9/icons.json" with {
  type: "json",
};
import { cannot } from "../core/errors.ts";
import type { AtlasIndex, AtlasSprite } from "../micro/art.ts";
import { DESIGNS, IDENTITIES, NOUNS, WIDE_NOUNS } from "../micro/world.ts";

/** One icon of an iconify set. */
interface Icon {
  readonly body: string;
  readonly left?: number;
  readonly top?: number;
  readonly width?: number;
  readonly height?: number;
}

/** An iconify set as published. */
interface IconSet {
  readonly icons: Readonly<Record<string, Icon | undefined>>;
  readonly width?: number;
  readonly height?: number;
}

const SETS: Readonly<Record<string, IconSet>> = {
  "@iconify-json/noto": noto as IconSet,
  "@iconify-json/noto-v1": notoV1 as IconSet,
  "@iconify-json/fxemoji": fxemoji as IconSet,
  "@iconify-json/fluent-emoji": fluent as IconSet,
  "@iconify-json/fluent-emoji-flat": fluentFlat as IconSet,
};

/** Side of a cell of every atlas, in pixels. */
const CELL = 48;
/** Cells in a row of every atlas. */
const COLUMNS = 8;

/** Names that sets use for a code point where the usual ones fail. */
const ALIASES: Readonly<Record<string, readonly string[]>> = {
  "1f34e": ["apple"],
  "1f474": ["older-man"],
  "1f697": ["automobile"],
  "26f5": ["sailboat"],
  "2614": ["umbrella"],
  "23f0": ["alarm-clock"],
  "2708": ["airplane"],
  "2603": ["snowman"],
  "1f98a": ["fox-face"],
};

/** Icon names worth trying for a code point, from three naming tables. */
function namesOf(codepoint: string): string[] {
  const emoji = String.fromCodePoint(parseInt(codepoint, 16));
  const table = emojiData as Record<string, { slug: string } | undefined>;
  const entry = table[emoji] ?? table[emoji + "\ufe0f"];
  const names = [
    (fluentFlatChars as Record<string, string | undefined>)[codepoint],
    (notoChars as Record<string, string | undefined>)[codepoint],
    entry?.slug.replaceAll("_", "-"),
    ...(ALIASES[codepoint] ?? []),
  ];
  return [...new Set(names.filter((name) => name !== undefined))];
}

/** Draws an icon, trims it, and fits it into a transparent cell. */
async function drawIcon(set: IconSet, icon: Icon): Promise<Uint8Array> {
  const width = icon.width ?? set.width ?? 16;
  const height = icon.height ?? set.height ?? 16;
  const box = [icon.left ?? 0, icon.top ?? 0, width, height].join(" ");
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" ` +
    `xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="${box}" ` +
    `width="384" height="384">${icon.body}</svg>`;
  const trimmed = await sharp(new TextEncoder().encode(svg))
    .trim({ background: "#00000000", threshold: 1 }).png().toBuffer();
  const raw = await sharp(trimmed).resize(CELL, CELL, {
    fit: "contain",
    background: "#00000000",
  }).ensureAlpha().raw().toBuffer();
  return new Uint8Array(raw);
}

/** Lays cells out in rows and compresses them. */
async function encodeAtlas(cells: readonly Uint8Array[]): Promise<Uint8Array> {
  const rows = Math.ceil(cells.length / COLUMNS);
  const width = COLUMNS * CELL;
  const sheet = new Uint8Array(width * rows * CELL * 4);
  cells.forEach((cell, i) => {
    const left = (i % COLUMNS) * CELL, top = Math.floor(i / COLUMNS) * CELL;
    for (let y = 0; y < CELL; y++) {
      sheet.set(
        cell.subarray(y * CELL * 4, (y + 1) * CELL * 4),
        ((top + y) * width + left) * 4,
      );
    }
  });
  // Colour under zero alpha is never seen: clear it, so that it packs.
  for (let i = 0; i < sheet.length; i += 4) {
    if (sheet[i + 3] === 0) sheet.fill(0, i, i + 3);
  }
  return new Uint8Array(
    await sharp(sheet, {
      raw: { width, height: rows * CELL, channels: 4 },
    }).png({ compressionLevel: 9, adaptiveFiltering: true, palette: false })
      .toBuffer(),
  );
}

/**
 * Draws every still design into `atlas-<design>.png`, and those of the
 * identities' code points into `others.png`, which no training set reads.
 */
async function drawStills(folder: URL): Promise<AtlasIndex> {
  const files: string[] = [];
  const sprites: AtlasSprite[] = [];
  const others: Uint8Array[] = [];
  const absent: string[] = [];
  const otherSprites: AtlasSprite[] = [];
  const nouns = [
    ...NOUNS.map((n) => ({ ...n, other: false })),
    ...WIDE_NOUNS.map((n) => ({ ...n, other: false })),
    ...IDENTITIES.map((i) => ({ ...i, word: i.name, other: true })),
  ];
  for (const design of DESIGNS) {
    const set = SETS[design.package];
    const cells: Uint8Array[] = [];
    for (const noun of nouns) {
      const icon = namesOf(noun.codepoint).find((name) => set.icons[name]);
      if (icon === undefined) {
        absent.push(`${noun.word}/${design.word}`);
        continue;
      }
      const cell = await drawIcon(set, set.icons[icon]!);
      const sprite = {
        noun: noun.word,
        design: design.word,
        codepoint: noun.codepoint,
        icon,
      };
      if (noun.other) {
        otherSprites.push({
          ...sprite,
          file: "others.png",
          cell: others.push(cell) - 1,
        });
      } else {
        sprites.push({
          ...sprite,
          file: `atlas-${design.word}.png`,
          cell: cells.push(cell) - 1,
        });
      }
    }
    const file = `atlas-${design.word}.png`;
    files.push(file);
    await Deno.writeFile(new URL(file, folder), await encodeAtlas(cells));
  }
  files.push("others.png");
  await Deno.writeFile(new URL("others.png", folder), await encodeAtlas(others));
  const missing = absent.filter((name) =>
    NOUNS.some((n) =>
      DESIGNS.slice(0, 2).some((d) => name === `${n.word}/${d.word}`)
    )
  );
  if (missing.length > 0) {
    throw cannot("draw the base world", "every noun in both designs", missing);
  }
  return {
    cell: CELL,
    columns: COLUMNS,
    designs: DESIGNS,
    sprites,
    others: otherSprites,
    absent,
  };
}

if (import.meta.main) {
  const folder = new URL("../../models/micro/art/", import.meta.url);
  await Deno.mkdir(folder, { recursive: true });
  const index = await drawStills(folder);
  await Deno.writeTextFile(
    new URL("atlas.json", folder),
    JSON.stringify(index, null, 1) + "\n",
  );
  console.log(
    `drew ${index.sprites.length} sprites, ${index.others.length} others; ` +
      `absent: ${index.absent.join(", ")}`,
  );
}
