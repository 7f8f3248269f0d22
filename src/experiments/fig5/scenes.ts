/**
 * The arms of the experiment, and the layout of a scene in each of them.
 *
 * @module
 */
import type { LayoutInput } from "../../diffusion/layout.ts";
import { withArticle } from "../../micro/captions.ts";
import {
  groupPrompt,
  type GroupScene,
  regionRows,
  sizeOf,
} from "../../micro/group_scene.ts";
import type { Identity } from "../../micro/world.ts";
import type { ExperimentPreset } from "../presets.ts";

/** Ways to fuse that are compared. */
export const REGION_FUSIONS = ["weight", "gradient"] as const;

/** Ways to say where concepts are, on a fused model. */
const FUSED_WAYS = [
  "plain",
  "regional",
  "regional+negative",
  "regional+sketch",
] as const;

/** Ways to use adapters that are not fused. */
const UNFUSED_WAYS = ["region-adapters", "switch", "composite"] as const;

/** A way to draw a scene. */
export type Way = typeof FUSED_WAYS[number] | typeof UNFUSED_WAYS[number];

/** Arms that are rendered: with every concept, the ceiling; without, the floor. */
export const RENDERED_ARMS: readonly string[] = ["real", "empty"];

/** Every arm, in the order of the table. */
export const REGION_ARMS: readonly string[] = [
  ...RENDERED_ARMS,
  ...FUSED_WAYS.flatMap((way) => REGION_FUSIONS.map((f) => `${way}.${f}`)),
  ...UNFUSED_WAYS,
];

/** Arms that are also drawn at other resolutions. */
export const RESOLUTION_ARMS: readonly string[] = [
  "plain.gradient",
  "regional.gradient",
];

/** Widths a concept's column may have, pixels at scale 1. */
export const COLUMN_WIDTHS = [32, 48, 64] as const;

/**
 * Whether an arm is told the places of concepts: regions tell, and the places in the
 * prompt for two and three concepts; for four there are no words.
 *
 * @param arm One of {@linkcode REGION_ARMS}.
 * @param n Number of concepts.
 */
export function knowsPlaces(arm: string, n: number): boolean {
  const [way] = arm.split(".");
  return !["plain", "switch", "composite"].includes(way) || n <= 3;
}

/** How a concept stands in prompts. */
export type PhraseOf = (identity: Identity) => string;

/** How it stands in prompts that a model without it is asked. */
export const classOf: PhraseOf = (identity) => identity.class;

/** The layout document of a scene in one arm. */
export function sceneLayout(
  scene: GroupScene,
  way: Way,
  phrase: PhraseOf,
  settings: Pick<ExperimentPreset, "sampling">,
): LayoutInput {
  const { concepts, where } = scene;
  const { sampler, steps, guidance, negative } = settings.sampling;
  const common = { negative, sampler, steps, guidance, size: sizeOf(scene) };
  if (way === "plain" || way === "switch" || way === "composite") {
    return { ...common, prompt: groupPrompt(concepts.map(phrase), where) };
  }
  const n = concepts.length;
  return {
    ...common,
    prompt: groupPrompt(concepts.map(classOf), where),
    regions: concepts.map((concept, i) => ({
      mask: { rows: regionRows(i, n) },
      prompt: withArticle(phrase(concept)),
      negative: way === "regional+negative"
        ? [
          negative,
          ...concepts.filter((other) => other !== concept)
            .map((other) => withArticle(phrase(other))),
        ].filter((text) => text !== "").join(" and ")
        : negative,
      ...(way === "region-adapters" ? { concepts: [concept.name] } : {}),
    })),
    ...(way === "regional+sketch" && {
      conditions: [{
        type: "t2i_adapter" as const,
        network: "sketch",
        image: { file: "sketch" },
      }],
    }),
  };
}
