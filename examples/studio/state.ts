/**
 * What the person has chosen, as one value, and how it becomes a layout and
 * comes back from one.
 *
 * @module
 */
import type { LayoutInput } from "@mix-of-show/mix-of-show";
import type { Combine, ConceptInfo, DrawRequest, Found } from "./messages.ts";

/** A place in parts of the picture. */
export interface Place {
  /** Upper edge, 0 to 1. */
  readonly top: number;
  /** Left edge. */
  readonly left: number;
  /** Lower edge. */
  readonly bottom: number;
  /** Right edge. */
  readonly right: number;
}

/** A box with a prompt. */
export interface Box {
  /** Tells it from others. */
  readonly id: number;
  /** Where it is. */
  readonly place: Place;
  /** What is in it; a concept stands there as its words. */
  readonly prompt: string;
  /** What an opened layout says of it besides. */
  readonly rest?: Partial<NonNullable<LayoutInput["regions"]>[number]>;
}

/** What steers the picture besides words. */
export interface Sketch {
  /** Nothing, lines that were drawn, or the outlines of the boxes. */
  readonly use: "none" | "drawn" | "outline";
  /** What was drawn: a PNG as a data: URL, white on black. */
  readonly image: string;
  /** How strongly it acts. */
  readonly scale: number;
}

/** All that is chosen. */
export interface State {
  /** What the whole picture shows. */
  readonly prompt: string;
  /** What it stays away from. */
  readonly negative: string;
  /** Pixels. */
  readonly size: { readonly width: number; readonly height: number };
  /** Seed of the noise. */
  readonly seed: number;
  /** Sampling steps. */
  readonly steps: number;
  /** Guidance scale. */
  readonly guidance: number;
  /** Places with prompts. */
  readonly boxes: readonly Box[];
  /** How concepts act. */
  readonly combine: Combine;
  /** Strengths by concept; 1 where none is given. */
  readonly strengths: Readonly<Record<string, number>>;
  /** What steers. */
  readonly sketch: Sketch;
  /** Fields of an opened layout that the page has no place for. */
  readonly rest: Omit<LayoutInput, "prompt">;
}

/** The concepts that the page comes with: what to show, the name in the file. */
export const SHIPPED: readonly (readonly [label: string, name: string])[] = [
  ["tiger", "raja"],
  ["panda", "momo"],
  ["penguin", "pogo"],
  ["police car", "dash"],
];

/** Words of a shipped concept. */
const words = (name: string) => `a <${name}1> <${name}2>`;

/** What the page opens with: a picture of two concepts, ready to be drawn. */
export const START: State = {
  prompt: "two animals on grass",
  negative: "",
  size: { width: 128, height: 64 },
  seed: 1,
  steps: 20,
  guidance: 5,
  boxes: [
    {
      id: 1,
      place: { top: 0.15, left: 0.05, bottom: 0.9, right: 0.45 },
      prompt: words("raja"),
    },
    {
      id: 2,
      place: { top: 0.15, left: 0.55, bottom: 0.9, right: 0.95 },
      prompt: words("momo"),
    },
  ],
  combine: "boxes",
  strengths: {},
  sketch: { use: "none", image: "", scale: 1 },
  rest: {},
};

/** Two decimals: what a person can aim at. */
const round = (value: number) => Math.round(value * 100) / 100;

/** A place inside the picture, the right way round. */
export function inside({ top, left, bottom, right }: Place): Place {
  const clamp = (value: number) => round(Math.min(1, Math.max(0, value)));
  const [y, x] = [[top, bottom], [left, right]].map((pair) =>
    pair.map(clamp).sort((a, b) => a - b)
  );
  return { top: y[0], left: x[0], bottom: y[1], right: x[1] };
}

/** Moves a place without changing its size. */
export function moved(place: Place, dx: number, dy: number): Place {
  const { top, left, bottom, right } = place;
  const x = Math.min(1 - right, Math.max(-left, dx));
  const y = Math.min(1 - bottom, Math.max(-top, dy));
  return inside({
    ...{ top: top + y, bottom: bottom + y, left: left + x, right: right + x },
  });
}

/** Moves the lower right corner. */
export function resized(
  { right, bottom, ...corner }: Place,
  dx: number,
  dy: number,
): Place {
  return inside({
    ...corner,
    right: Math.max(corner.left + 0.05, right + dx),
    bottom: Math.max(corner.top + 0.05, bottom + dy),
  });
}

/** The concept that a text calls. */
export function conceptIn(
  text: string,
  concepts: readonly ConceptInfo[],
): ConceptInfo | undefined {
  const lower = text.toLowerCase();
  return concepts.find(({ phrase }) => lower.includes(phrase.toLowerCase()));
}

/** A text that calls another concept, or none, in the place of the first. */
export function recalled(
  text: string,
  from: ConceptInfo | undefined,
  to: ConceptInfo | undefined,
): string {
  const next = to?.phrase ?? from?.classWord ?? "";
  if (from) {
    const at = text.toLowerCase().indexOf(from.phrase.toLowerCase());
    return text.slice(0, at) + next + text.slice(at + from.phrase.length);
  }
  // Words of concepts that are not there would be refused.
  const rest = text.replace(/<[^<>\s]+>/g, " ").replace(/\s+/g, " ").trim();
  return rest === "" ? `a ${next}` : `${rest} ${next}`;
}

/** What is drawn, as the worker and `sample --layout` take it. */
export function requestOf(state: State): DrawRequest {
  const { prompt, negative, size, seed, steps, guidance, sketch } = state;
  const image = sketch.use === "drawn"
    ? { file: sketch.image }
    : { regions: "outline" as const };
  const steered = sketch.use === "drawn" && sketch.image !== "" ||
    sketch.use === "outline" && state.boxes.length > 0;
  return {
    layout: {
      ...state.rest,
      ...{ prompt, negative, size, seed, steps, guidance },
      // Later boxes are in front, as on any drawing table.
      regions: state.boxes.map(({ place, prompt, rest }, i) => ({
        ...{ priority: i, ...rest, box: place, prompt },
      })),
      conditions: steered
        ? [{
          ...{ type: "t2i_adapter", network: "sketch", image },
          scale: sketch.scale,
        }]
        : [],
    },
    combine: state.combine,
    strengths: state.strengths,
  };
}

/**
 * What an opened layout means for the page.
 *
 * @param state What was there; the size, where the layout has none.
 * @param found The layout.
 * @throws If it has what the page cannot show: masks, boxes in pixels, other
 * conditions than one sketch, several pictures.
 */
export function stateOf(
  state: State,
  { layout, combine, strengths }: Found,
): State {
  const { prompt, negative, size, seed, steps, guidance, ...others } = layout;
  const { regions = [], conditions = [], count = 1, ...rest } = others;
  const refuse = (what: string) => {
    throw new Error(
      `Cannot open the layout: expected boxes, at most one sketch and one ` +
        `picture, got ${what}`,
    );
  };
  if (count !== 1) refuse(`${count} pictures`);
  if (typeof seed === "object" && seed.length > 1) refuse("several seeds");
  const boxes = regions.map(({ box, prompt, ...rest }, i): Box => {
    if (!box) return refuse("a mask");
    const by = box.unit === "pixel" ? size! : { width: 1, height: 1 };
    return {
      id: i + 1,
      ...{ prompt, rest },
      place: inside({
        top: box.top! / by.height,
        left: box.left! / by.width,
        bottom: box.bottom! / by.height,
        right: box.right! / by.width,
      }),
    };
  });
  const [condition] = conditions;
  let sketch: Sketch = { ...START.sketch };
  if (condition) {
    const { type, image, scale = 1 } = condition;
    if (conditions.length > 1 || type !== "t2i_adapter") {
      refuse("other conditions");
    }
    if ("file" in image && image.file.startsWith("data:")) {
      sketch = { use: "drawn", image: image.file, scale };
    } else if ("regions" in image && image.regions === "outline") {
      sketch = { ...sketch, use: "outline", scale };
    } else refuse("a condition image that is no sketch of this page");
  }
  return {
    prompt,
    negative: negative ?? "",
    size: size ?? state.size,
    seed: (typeof seed === "object" ? seed[0] : seed) ?? 0,
    steps: steps ?? 20,
    guidance: guidance ?? 7.5,
    boxes,
    combine: combine ??
      (regions.some(({ concepts = [] }) => concepts.length > 0)
        ? "boxes"
        : state.combine),
    strengths: strengths ?? {},
    sketch,
    rest,
  };
}
