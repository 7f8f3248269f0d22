/**
 * The arms of the experiment, and the layout of a scene in each.
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
import type { ExperimentPreset } from "../presets.ts";
import { phraseOf } from "../subjects.ts";

/** Ways to fuse that are compared. */
export const REGION_FUSIONS: readonly string[] = ["weight", "gradient"];

/**
 * Arms that are rendered: with every concept (upper bound) and without (lower
 * bound).
 */
export const RENDERED_ARMS: readonly string[] = ["real", "empty"];

/** Every arm, in the order of the table: `way.fusion`, or a way without fusion. */
export const REGION_ARMS: readonly string[] = [
  ...RENDERED_ARMS,
  ...["plain", "regional", "regional+negative", "regional+sketch"]
    .flatMap((way) => REGION_FUSIONS.map((fusion) => `${way}.${fusion}`)),
  ...["region-adapters", "switch", "composite"],
];

/** Ways with one prompt for the whole picture. */
const ONE_PROMPT = ["plain", "switch", "composite"];

/**
 * Whether an arm specifies the places of concepts: by regions, or by words
 * (only for two and three concepts).
 *
 * @param arm One of {@linkcode REGION_ARMS}.
 * @param n Number of concepts.
 */
export function knowsPlaces(arm: string, n: number): boolean {
  return n <= 3 || !ONE_PROMPT.includes(arm.split(".")[0]);
}

/**
 * The layout of a scene in an arm.
 *
 * @param scene The scene.
 * @param arm The arm, or its way.
 * @param settings Phrases of the concepts, and sampling settings.
 */
export function sceneLayout(
  scene: GroupScene,
  arm: string,
  settings: ExperimentPreset,
): LayoutInput {
  const { concepts, where } = scene;
  const { sampling } = settings;
  const [way] = arm.split(".");
  const phrases = concepts.map((one) => phraseOf(settings, "edlora", one));
  const common = { ...sampling, size: sizeOf(scene) };
  if (ONE_PROMPT.includes(way)) {
    return { ...common, prompt: groupPrompt(phrases, where) };
  }
  const words = phrases.map(withArticle);
  const negatives = words.map((own) =>
    way !== "regional+negative" ? [] : words.filter((other) => other !== own)
  );
  return {
    ...common,
    prompt: groupPrompt(concepts.map((one) => one.class), where),
    regions: words.map((prompt, i) => ({
      mask: { rows: regionRows(i, words.length) },
      prompt,
      negative: [sampling.negative, ...negatives[i]].filter(Boolean)
        .join(" and "),
      ...(way === "region-adapters" && { concepts: [concepts[i].name] }),
    })),
    ...(way === "regional+sketch" && {
      conditions: [{
        type: "t2i_adapter",
        network: "sketch",
        image: { file: "sketch" },
      }],
    }),
  };
}
