/**
 * What the evaluation CLIP learns beside captions: to tell one drawing from all
 * others, by its shape and not by its colours alone.
 *
 * @module
 */
import {
  fold,
  type Key,
  type Stream,
  stream,
} from "../../../src/core/random.ts";
import {
  corrupt,
  type Corruption,
  type MaskedPicture,
} from "../../../src/evaluation/corruptions.ts";
import type { Art } from "../../../src/micro/art.ts";
import {
  placeObject,
  renderMask,
  renderScene,
  type Scene,
  squarePixels,
} from "../../../src/micro/scenes.ts";
import { IDENTITIES, WIDE_WORLD } from "../../../src/micro/world.ts";

/** Temperature of {@linkcode identityLoss}. */
const TEMPERATURE = 0.1;

/** By how much a drawing's other view must be nearer than a spoilt one. */
const MARGIN = 0.4;

/** Weight of that. */
const HARD = 2;

/** How a hard negative is made, and how often. */
const SPOILT: readonly (readonly [Corruption | "recoloured", number])[] = [
  ["shuffled8", 0.45],
  ["shuffled4", 0.1],
  ["pixelated8", 0.15],
  ["pixelated4", 0.05],
  ["blob", 0.05],
  ["hue", 0.1],
  ["recoloured", 0.1],
];

/** Pictures of one drawing, and one that must not pass for it. */
export interface IdentityViews {
  /** Two pictures of the drawing: RGB bytes. */
  readonly views: readonly [Uint8Array, Uint8Array];
  /** Each of them spoilt, or another drawing in its colours. */
  readonly spoilt: readonly [Uint8Array, Uint8Array];
  /** What the two have in common. */
  readonly label: string;
}

/** Sprite keys of a drawing: the frames of an identity, or one still. */
function drawings(art: Art): Map<string, string[]> {
  const groups = new Map<string, string[]>();
  const names = new Set(IDENTITIES.map(({ name }) => name));
  for (const sprite of art.sprites.keys()) {
    const [noun, design] = sprite.split("/");
    const frame = /^(train|reference|clip)-\d+$/.exec(design);
    // Training and reference frames stay unseen: they are what is scored.
    if (frame && frame[1] !== "clip") continue;
    const label = frame && names.has(noun) ? noun : sprite;
    groups.set(label, [...groups.get(label) ?? [], sprite]);
  }
  return groups;
}

const groupsOf = new WeakMap<Art, Map<string, string[]>>();

/** A drawing somewhere on some background. */
function view(sprite: string, art: Art, draw: Stream): MaskedPicture {
  const [noun, design] = sprite.split("/");
  const { side, backgrounds } = WIDE_WORLD;
  const scene: Scene = {
    side,
    background: backgrounds[draw.integer(backgrounds.length)].word,
    texture: draw.integer(2 ** 31),
    objects: [placeObject(
      {
        noun,
        class: "",
        design,
        color: null,
        size: null,
        scale: 27 + draw.integer(26),
      },
      WIDE_WORLD,
      draw,
    )],
  };
  return {
    image: squarePixels(side, renderScene(scene, art, WIDE_WORLD)),
    mask: renderMask(scene, art),
  };
}

/**
 * Draws two views of one drawing and a hard negative of each.
 *
 * Half of the drawings are identities (their `clip` frames), half are nouns and
 * look-alikes in any design.
 *
 * @param from Random key.
 * @param art From `loadConceptArt`.
 */
export function identityViews(from: Key, art: Art): IdentityViews {
  const groups = groupsOf.get(art) ?? drawings(art);
  groupsOf.set(art, groups);
  const draw = stream(from);
  const labels = [...groups.keys()];
  const any = (): string =>
    draw.uniform() < 0.5
      ? IDENTITIES[draw.integer(IDENTITIES.length)].name
      : labels[draw.integer(labels.length)];
  const label = any();
  const one = (name: string): MaskedPicture => {
    const sprites = groups.get(name)!;
    return view(sprites[draw.integer(sprites.length)], art, draw);
  };
  const a = one(label), b = one(label);
  const spoil = (subject: MaskedPicture, i: number): Uint8Array => {
    let u = draw.uniform();
    const how = SPOILT.find(([, share]) => (u -= share) < 0)?.[0];
    return how === "recoloured"
      ? recoloured(one(any()), subject)
      : corrupt(subject, how ?? "shuffled8", fold(from, "spoilt", i)).data;
  };
  return {
    views: [a.image.data, b.image.data],
    spoilt: [spoil(a, 0), spoil(b, 1)],
    label,
  };
}

/** The label of a spoilt picture of a drawing. */
export function spoiltLabel(label: string): string {
  return `spoilt ${label}`;
}

/** Mean and spread of each channel inside a mask. */
function colours({ image, mask }: MaskedPicture): [number, number][] {
  return [0, 1, 2].map((c) => {
    let weight = 1e-6, sum = 0, squares = 0;
    mask.forEach((m, i) => {
      const value = image.data[i * 3 + c];
      weight += m;
      sum += m * value;
      squares += m * value * value;
    });
    const mean = sum / weight;
    return [mean, Math.sqrt(Math.max(1, squares / weight - mean * mean))];
  });
}

/** A subject in the colours of another: mean and spread of each channel. */
function recoloured(subject: MaskedPicture, like: MaskedPicture): Uint8Array {
  const own = colours(subject), wanted = colours(like);
  return subject.image.data.map((value, i) => {
    const c = i % 3, m = subject.mask[Math.floor(i / 3)];
    const moved = (value - own[c][0]) * wanted[c][1] / own[c][1] + wanted[c][0];
    return Math.round(
      value * (1 - m) + Math.max(0, Math.min(255, moved)) * m,
    );
  });
}

/**
 * Loss of image embeddings by what they show, and its gradient, on the host:
 * supervised contrastive (Khosla et al. 2020) plus a margin between a drawing's
 * other views and its spoilt ones.
 *
 * @param images Unit vectors end to end.
 * @param labels One a picture; null is like nothing else, a
 * {@linkcode spoiltLabel} only pushes others away.
 * @returns Mean over the pictures that have a partner.
 */
export function identityLoss(
  images: Float32Array,
  labels: readonly (string | null)[],
): { loss: number; hard: number; by: Float32Array } {
  const n = labels.length, d = images.length / n;
  const cosine = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) {
      let dot = 0;
      for (let k = 0; k < d; k++) dot += images[i * d + k] * images[j * d + k];
      cosine[i * n + j] = cosine[j * n + i] = dot;
    }
  }
  const spoilt = new Set(labels.map((l) => l === null ? "" : spoiltLabel(l)));
  const where = (i: number, label: string): number[] =>
    labels.flatMap((other, j) => j !== i && other === label ? [j] : []);
  const partners = labels.map((label, i) =>
    label === null || spoilt.has(label) ? [] : where(i, label)
  );
  const anchors = partners.filter((p) => p.length > 0).length;
  // dL/dcosine.
  const g = new Float64Array(n * n);
  let loss = 0, hard = 0;
  partners.forEach((own, i) => {
    if (own.length === 0) return;
    const logit = (j: number) => cosine[i * n + j] / TEMPERATURE;
    let max = -Infinity, sum = 0;
    for (let j = 0; j < n; j++) if (j !== i) max = Math.max(max, logit(j));
    for (let j = 0; j < n; j++) if (j !== i) sum += Math.exp(logit(j) - max);
    const log = Math.log(sum) + max;
    for (let j = 0; j < n; j++) {
      if (j !== i) g[i * n + j] += Math.exp(logit(j) - log) / TEMPERATURE;
    }
    for (const j of own) {
      loss += (log - logit(j)) / own.length / anchors;
      g[i * n + j] -= 1 / own.length / TEMPERATURE;
    }
    const bad = where(i, spoiltLabel(labels[i]!));
    const pairs = bad.length * own.length;
    for (const s of bad) {
      for (const j of own) {
        const gap = (cosine[i * n + s] - cosine[i * n + j] + MARGIN) /
          TEMPERATURE;
        hard += Math.log1p(Math.exp(gap)) / pairs / anchors;
        const slope = HARD / (1 + Math.exp(-gap)) / TEMPERATURE / pairs;
        g[i * n + s] += slope;
        g[i * n + j] -= slope;
      }
    }
  });
  const by = new Float32Array(images.length);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const slope = g[i * n + j] / anchors;
      if (slope === 0) continue;
      for (let k = 0; k < d; k++) {
        by[i * d + k] += slope * images[j * d + k];
        by[j * d + k] += slope * images[i * d + k];
      }
    }
  }
  return { loss: loss + HARD * hard, hard, by };
}
