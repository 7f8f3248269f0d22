/**
 * `deno task art`: redraws the committed atlases from the pinned art packages.
 * The only user of those packages; everything else reads models/micro/art.
 *
 * @module
 */
// Inline, so that nobody who only uses the library fetches these packages.
// deno-lint-ignore-file no-import-prefix
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
import { cannot } from "../../src/core/errors.ts";
import { helped, onlyKnown } from "./help.ts";
import type { AtlasIndex, AtlasSprite } from "../../src/micro/art.ts";
import type { FrameIndex, FrameSet } from "../../src/micro/concepts.ts";
import {
  DESIGNS,
  IDENTITIES,
  NOUNS,
  WIDE_NOUNS,
} from "../../src/micro/world.ts";

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
      // The animations are of the same hand: no look-alikes but copies.
      if (noun.other && design.hand === "fluent") continue;
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
  await Deno.writeFile(
    new URL("others.png", folder),
    await encodeAtlas(others),
  );
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

/** The pinned packages of animated drawings. */
const ANIMATIONS = [1, 2, 3, 4].map((part) => ({
  package: `@lobehub/fluent-emoji-anim-${part}`,
  version: "1.0.0",
}));
/** Frames kept of each block. */
const FRAMES = 10;

function existsSync(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** The packages' files of the identities, fetched through the npm client. */
async function fetchAnimations(
  folder: string,
): Promise<{ package: string; version: string; path: string }[]> {
  const run = async (command: string, ...args: string[]): Promise<string> => {
    const { success, stdout, stderr } = await new Deno.Command(command, {
      args,
      cwd: folder,
    }).output();
    const text = new TextDecoder();
    if (!success) {
      throw cannot("fetch art", `${command} to work`, text.decode(stderr));
    }
    return text.decode(stdout);
  };
  const wanted = new Set(
    IDENTITIES.flatMap(({ codepoint }) =>
      filesOf(codepoint).map((file) => `package/${file}`)
    ),
  );
  const fetched = [];
  for (const entry of ANIMATIONS) {
    const packed = await run(
      "npm",
      "pack",
      "--silent",
      `${entry.package}@${entry.version}`,
    );
    const archive = packed.trim().split("\n").pop()!;
    const path = `${folder}/${archive.replace(/\.tgz$/, "")}`;
    await Deno.mkdir(path);
    const files = (await run("tar", "tzf", archive)).split("\n")
      .filter((file) => wanted.has(file));
    if (files.length > 0) {
      await run("tar", "xzf", archive, "-C", path, ...files);
    }
    await Deno.remove(`${folder}/${archive}`);
    fetched.push({ ...entry, path: `${path}/package` });
  }
  return fetched;
}

/** File names an animation can have in its package. */
function filesOf(codepoint: string): string[] {
  return ["", "-fe0f"].map((variant) => `assets/${codepoint}${variant}.webp`);
}

/** Root mean square difference of two cells over mid grey, 0–255. */
function cellDistance(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return Math.sqrt(sum / a.length);
}

/** A cell over mid grey, and its mirror image. */
function overGrey(cell: Uint8Array): [Float32Array, Float32Array] {
  const plain = new Float32Array(CELL * CELL * 3);
  const mirrored = new Float32Array(CELL * CELL * 3);
  for (let y = 0; y < CELL; y++) {
    for (let x = 0; x < CELL; x++) {
      const from = (y * CELL + x) * 4;
      const alpha = cell[from + 3] / 255;
      for (let c = 0; c < 3; c++) {
        const value = cell[from + c] * alpha + 128 * (1 - alpha);
        plain[(y * CELL + x) * 3 + c] = value;
        mirrored[(y * CELL + CELL - 1 - x) * 3 + c] = value;
      }
    }
  }
  return [plain, mirrored];
}

/**
 * Cuts a loop into three blocks with gaps between, then drops the frames that
 * look most like another block's (mirrored too) until `FRAMES` are left in
 * each; tries every start and keeps the best separated cut.
 */
function separate(
  cells: readonly Uint8Array[],
): { sets: Record<FrameSet, number[]>; distance: number } {
  const n = cells.length;
  const grey = cells.map(overGrey);
  const far = grey.map(([a]) =>
    grey.map(([b, mirrored]) =>
      Math.min(cellDistance(a, b), cellDistance(a, mirrored))
    )
  );
  const gap = Math.max(2, Math.round(n * 0.05));
  const length = Math.floor(n / 3) - gap;
  let best: { blocks: number[][]; distance: number } | undefined;
  for (let start = 0; start < n; start++) {
    const blocks = [0, 1, 2].map((b) =>
      Array.from(
        { length },
        (_, i) => (start + b * (length + gap) + i) % n,
      )
    );
    for (;;) {
      // The closest pair across blocks loses its frame from a fuller block.
      let distance = Infinity, drop: [number, number] = [-1, -1];
      blocks.forEach((block, b) =>
        blocks.forEach((other, o) => {
          if (o === b) return;
          for (const f of block) {
            for (const g of other) {
              if (far[f][g] >= distance) continue;
              distance = far[f][g];
              const mine = block.length >= other.length;
              drop = mine ? [b, f] : [o, g];
            }
          }
        })
      );
      if (blocks[drop[0]].length <= FRAMES) {
        const extra = blocks.findIndex((block) => block.length > FRAMES);
        if (extra < 0) {
          if (!best || distance > best.distance) {
            best = { blocks: blocks.map((b) => [...b]), distance };
          }
          break;
        }
        drop = [extra, blocks[extra][blocks[extra].length >> 1]];
      }
      blocks[drop[0]].splice(blocks[drop[0]].indexOf(drop[1]), 1);
    }
  }
  const [train, reference, clip] = best!.blocks;
  return { sets: { train, reference, clip }, distance: best!.distance };
}

/** All frames of an animation, cropped alike and fitted into cells. */
async function drawFrames(file: string): Promise<Uint8Array[]> {
  const { pages = 1, pageHeight, width } = await sharp(file, {
    animated: true,
  }).metadata();
  const strip = new Uint8Array(
    await sharp(file, { animated: true }).ensureAlpha().raw().toBuffer(),
  );
  const height = pageHeight!, w = width!;
  let left = w, right = 0, top = height, bottom = 0;
  for (let page = 0; page < pages; page++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < w; x++) {
        if (strip[((page * height + y) * w + x) * 4 + 3] < 16) continue;
        left = Math.min(left, x), right = Math.max(right, x + 1);
        top = Math.min(top, y), bottom = Math.max(bottom, y + 1);
      }
    }
  }
  const cells: Uint8Array[] = [];
  for (let page = 0; page < pages; page++) {
    const from = page * height * w * 4;
    const frame = strip.subarray(from, from + height * w * 4);
    const raw = await sharp(frame, { raw: { width: w, height, channels: 4 } })
      .extract({ left, top, width: right - left, height: bottom - top })
      .resize(CELL, CELL, { fit: "contain", background: "#00000000" })
      .raw().toBuffer();
    cells.push(new Uint8Array(raw));
  }
  return cells;
}

/** Draws the identities' frames into `frames-<split>.png`. */
async function drawIdentities(
  folder: URL,
  scratch: string,
): Promise<FrameIndex> {
  const packages = await fetchAnimations(scratch);
  const sprites: AtlasSprite[] = [];
  const identities: FrameIndex["identities"][number][] = [];
  for (const split of ["test", "development"] as const) {
    const cells: Uint8Array[] = [];
    const file = `frames-${split}.png`;
    for (const identity of IDENTITIES.filter((i) => i.split === split)) {
      const names = filesOf(identity.codepoint);
      const found = packages.flatMap((entry) =>
        names.filter((name) =>
          existsSync(`${entry.path}/${name}`)
        )
          .map((icon) => ({ ...entry, icon }))
      )[0];
      if (!found) throw cannot("draw an identity", names.join(" or "), "none");
      const { icon } = found;
      const frames = await drawFrames(`${found.path}/${icon}`);
      const { sets, distance } = separate(frames);
      for (const [set, numbers] of Object.entries(sets)) {
        numbers.forEach((frame, i) =>
          sprites.push({
            noun: identity.name,
            design: `${set}-${i}`,
            codepoint: identity.codepoint,
            icon: `${icon}#${frame}`,
            file,
            cell: cells.push(frames[frame]) - 1,
          })
        );
      }
      identities.push({
        name: identity.name,
        package: found.package,
        version: found.version,
        license: "MIT",
        frames: frames.length,
        sets,
        distance: Math.round(distance * 100) / 100,
      });
    }
    await Deno.writeFile(new URL(file, folder), await encodeAtlas(cells));
  }
  return { cell: CELL, columns: COLUMNS, identities, sprites };
}

/** Who to thank for what, one entry a package. */
function credits(
  index: AtlasIndex,
  frames: FrameIndex,
): Record<string, unknown>[] {
  const authors: Record<string, string> = {
    noto: "Google LLC (Noto Emoji)",
    "noto-v1": "Google LLC (Noto Emoji, 2017 and before)",
    fxemoji: "Mozilla (FxEmojis)",
    fluent: "Microsoft Corporation (Fluent Emoji)",
  };
  const icons = [...index.sprites, ...index.others];
  return [
    ...index.designs.map((design) => ({
      package: design.package,
      version: design.version,
      license: design.license,
      author: authors[design.hand],
      icons: [
        ...new Set(
          icons.filter((i) => i.design === design.word).map((i) => i.icon),
        ),
      ].sort(),
    })),
    ...ANIMATIONS.map(({ package: name, version }) => ({
      package: name,
      version,
      license: "MIT",
      author: `${authors.fluent}, packaged by LobeHub`,
      icons: frames.identities.filter((i) => i.package === name)
        .map((i) =>
          frames.sprites.find((sprite) => sprite.noun === i.name)!
            .icon.split("#")[0]
        ).sort(),
    })).filter((entry) => entry.icons.length > 0),
  ];
}

const HELP = `
deno task art

Redraws the art of the embedded world into models/micro/art from the emoji
packages. For maintainers: the drawings are committed.

  --help   this text
`;

if (import.meta.main && !helped(HELP)) {
  onlyKnown("redraw the art");
  const folder = new URL("../../models/micro/art/", import.meta.url);
  await Deno.mkdir(folder, { recursive: true });
  const index = await drawStills(folder);
  await Deno.writeTextFile(
    new URL("atlas.json", folder),
    JSON.stringify(index, null, 1) + "\n",
  );
  const scratch = await Deno.makeTempDir({ prefix: "art-" });
  const frames = await drawIdentities(folder, scratch)
    .finally(() => Deno.remove(scratch, { recursive: true }));
  await Deno.writeTextFile(
    new URL("frames.json", folder),
    JSON.stringify(frames, null, 1) + "\n",
  );
  await Deno.writeTextFile(
    new URL("credits.json", folder),
    JSON.stringify(credits(index, frames), null, 1) + "\n",
  );
  for (const { name, frames: n, distance } of frames.identities) {
    console.log(`${name}: ${n} frames, sets at least ${distance} apart`);
  }
  console.log(
    `drew ${index.sprites.length} sprites, ${index.others.length} others; ` +
      `absent: ${index.absent.join(", ")}`,
  );
}
