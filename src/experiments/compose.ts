/**
 * Pieces of the experiment with several concepts in one picture: drawing a
 * layout in one of several ways, and embedding views of its regions.
 *
 * @module
 */
import { sha256 } from "../core/hash.ts";
import { disposeTree } from "../core/tree.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import { loadConcept } from "../formats/concept_file.ts";
import {
  type AdapterSampling,
  loraComposite,
  loraSwitch,
  regionAdapters,
} from "../customize/region_adapters.ts";
import type { Grey } from "../diffusion/condition_images.ts";
import { greyPixels } from "../diffusion/condition_images.ts";
import type { ConditionNetwork } from "../diffusion/conditions.ts";
import {
  type Layout,
  parseLayout,
  prepareLayout,
  type ResolvedLayout,
  resolveLayout,
} from "../diffusion/layout.ts";
import { generate } from "../diffusion/pipeline.ts";
import { type ClipModel, embedImages } from "../evaluation/clip.ts";
import { windows } from "../evaluation/crops.ts";
import { type Box, crop, resize } from "../evaluation/preprocess.ts";
import { exists, writeAtomic } from "../io/files.ts";
import { decodePng, encodePng, type Pixels } from "../io/png.ts";
import { type RawTensor, writeSafetensors } from "../io/safetensors.ts";
import type { Art } from "../micro/art.ts";
import { renderMask } from "../micro/scenes.ts";
import { outlineOf } from "../micro/sketch.ts";
import { loadControlNet } from "../models/controlnet.ts";
import type { Model } from "../models/model.ts";
import { loadT2IAdapter } from "../models/t2i_adapter.ts";
import {
  type ComposeHow,
  type ComposePiece,
  type ModelRef,
  shotKey,
  type SketchObject,
  store,
  type Tell,
  type ViewsPiece,
} from "./pieces.ts";
import { canonicalJson, embeddingsTensor, pieceId } from "./store.ts";

/**
 * SHA-256 of all sprites and their names: part of the name of what is rendered.
 *
 * @param art Loaded art.
 */
export async function artHash(art: Pick<Art, "sprites">): Promise<string> {
  const hashes: [string, string][] = [];
  for (const [name, { data }] of art.sprites) {
    hashes.push([name, await sha256(Uint8Array.from(data))]);
  }
  return await sha256(canonicalJson(hashes.sort(([a], [b]) => a < b ? -1 : 1)));
}

/**
 * The name of a drawn layout in the store.
 *
 * @param piece What draws it.
 * @param index Which of its pictures.
 */
export async function composedId(
  piece: ComposePiece,
  index: number,
): Promise<string> {
  const { noise, ...rest } = piece;
  return await pieceId({ ...rest, kind: "composed", noise: noise[index] });
}

/** Whether the store has all pictures of a piece. */
export async function isComposed(
  cache: string,
  piece: ComposePiece,
): Promise<boolean> {
  for (const index of piece.noise.keys()) {
    const id = await composedId(piece, index);
    if (!await exists(store.image(cache, id))) return false;
  }
  return true;
}

/** Outlines of identities on one picture. */
export function sketchImage(
  objects: readonly SketchObject[],
  width: number,
  height: number,
  art: Art,
): Grey {
  const values = new Float32Array(width * height);
  for (const { concept, frame, x, y, side } of objects) {
    const mask = renderMask({
      side,
      background: "",
      texture: 0,
      objects: [{
        noun: concept,
        class: "",
        design: `train-${frame}`,
        color: null,
        size: null,
        place: "center",
        x: side / 2,
        y: side / 2,
        // A border, so that an outline that fills the square is closed.
        scale: side - 2,
        flip: false,
      }],
    }, art);
    outlineOf(mask, side).values.forEach((v, i) => {
      const [row, column] = [y + Math.floor(i / side), x + i % side];
      if (v === 0 || row < 0 || column < 0) return;
      if (row < height && column < width) values[row * width + column] = 1;
    });
  }
  return { width, height, values };
}

/** Does something with a model of the store. */
export type UseModel = (
  ref: ModelRef,
  use: (model: Model) => Promise<Pixels[]>,
) => Promise<Pixels[]>;

/**
 * Runs a piece; its pictures go to the store.
 *
 * @param withModel Opens a model of the store and frees it.
 * @param art Loaded art, for sketches.
 * @param cache Folder of the store.
 * @param folders Folders of condition networks, by name.
 * @param piece The piece.
 * @param tell Called at the end.
 */
export async function runCompose(
  withModel: UseModel,
  art: Art,
  cache: string,
  folders: Readonly<Record<string, string>>,
  piece: ComposePiece,
  tell: Tell,
): Promise<void> {
  const layout = parseLayout(piece.layout);
  const sketch = (): Pixels => {
    const { width, height } = layout.size!;
    return greyPixels(sketchImage(piece.sketch ?? [], width, height, art));
  };
  const resolved = await resolveLayout(layout, {
    read: () => Promise.resolve(sketch()),
  });
  const networks = await openNetworks(layout, folders);
  try {
    const pictures = await withModel(
      piece.model,
      (model) => draw(model, resolved, networks, cache, piece),
    );
    for (const [index, picture] of pictures.entries()) {
      const id = await composedId(piece, index);
      await writeAtomic(store.image(cache, id), encodePng(picture));
    }
    tell(pictures.length, pictures.length);
  } finally {
    disposeTree(Object.values(networks).map(({ params }) => params));
  }
}

async function openNetworks(
  { conditions }: Layout,
  folders: Readonly<Record<string, string>>,
): Promise<Record<string, ConditionNetwork>> {
  const networks: Record<string, ConditionNetwork> = {};
  for (const { network: name, type } of conditions) {
    if (networks[name] || !folders[name]) continue;
    networks[name] = type === "t2i_adapter"
      ? { type, ...await loadT2IAdapter(folders[name]) }
      : { type, ...await loadControlNet(folders[name]) };
  }
  return networks;
}

async function draw(
  model: Model,
  resolved: ResolvedLayout,
  networks: Record<string, ConditionNetwork>,
  cache: string,
  piece: ComposePiece,
): Promise<Pixels[]> {
  const { layout } = resolved;
  const concepts: Concept[] = [];
  let sampling: AdapterSampling | undefined;
  try {
    for (const id of piece.concepts) {
      concepts.push(await loadConcept(store.concept(cache, id), model));
    }
    sampling = samplingOf(model, resolved, concepts, piece.how);
    const own = sampling;
    const unet = own?.pipeline.unet;
    const prepared = prepareLayout(own?.model ?? model, resolved, {
      networks,
      concepts: concepts.map(({ name }) => name),
      ...(unet ? { regions: () => ({ unet, dispose: () => {} }) } : {}),
    });
    try {
      const count = piece.noise.length;
      return await generate(own?.model ?? model, {
        ...prepared.options,
        ...(own?.pipeline.denoise ? { denoise: own.pipeline.denoise } : {}),
        prompts: new Array<string>(count).fill(layout.prompt),
        key: piece.noise.map(shotKey),
        batch: count,
      });
    } finally {
      prepared.dispose();
    }
  } finally {
    sampling?.dispose();
    concepts.forEach(disposeConcept);
  }
}

function samplingOf(
  model: Model,
  { layout, regions }: ResolvedLayout,
  concepts: readonly Concept[],
  how: ComposeHow,
): AdapterSampling | undefined {
  const { prompt, negative, regional } = layout;
  switch (how) {
    case "model":
      return undefined;
    case "switch":
      return loraSwitch(model, concepts, { prompt, negative });
    case "composite":
      return loraComposite(model, concepts, { prompt, negative });
    case "region-adapters":
      return regionAdapters(
        model,
        regions.map((region, i) => ({
          ...region,
          concepts: concepts.filter(({ name }) =>
            layout.regions[i].concepts.includes(name)
          ),
        })),
        regional,
      );
  }
}

/** The box of a share of a picture, whole pixels. */
function pixelBox(share: Box, { width, height }: Pixels): Box {
  const x = Math.round(share.x * width), y = Math.round(share.y * height);
  return {
    x,
    y,
    width: Math.min(width, Math.round((share.x + share.width) * width)) - x,
    height: Math.min(height, Math.round((share.y + share.height) * height)) -
      y,
  };
}

/**
 * Runs a piece; its embeddings go to the store, `whole.PICTURE` [1, d] and
 * `views.PICTURE.REGION` [windows, d].
 *
 * @param clip The evaluation CLIP.
 * @param cache Folder of the store.
 * @param piece The piece.
 * @param tell Called after each picture.
 */
export async function runViews(
  clip: ClipModel,
  cache: string,
  piece: ViewsPiece,
  tell: Tell,
): Promise<void> {
  const { regions, sides, step } = piece;
  const side = clip.config.vision_config.image_size;
  const tensors: [string, RawTensor][] = [];
  for (const [i, id] of piece.images.entries()) {
    const image = decodePng(await Deno.readFile(store.image(cache, id)));
    // Squashed, not cropped: a wide picture's outer regions count as well.
    const whole = resize(image, side, side);
    tensors.push([
      `whole.${i}`,
      embeddingsTensor(await embedImages(clip, [whole])),
    ]);
    for (const [r, share] of regions.entries()) {
      const views = windows(image.width, image.height, {
        region: pixelBox(share, image),
        sides,
        step,
      }).map((box) => crop(image, box));
      tensors.push([
        `views.${i}.${r}`,
        embeddingsTensor(await embedImages(clip, views)),
      ]);
    }
    tell(i + 1, piece.images.length);
  }
  await writeSafetensors(
    store.embedding(cache, await pieceId(piece)),
    tensors,
  );
}
