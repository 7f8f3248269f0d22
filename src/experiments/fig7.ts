/**
 * The paper's Fig 7, the ablation as grids: the embedding (LoRA against ED-LoRA),
 * the fusion (weight against gradient) and the regions (one prompt against a
 * region per concept), each with the same noise in every column.
 *
 * @module
 */
import { fold, key } from "../core/random.ts";
import { compare, type Comparison } from "../evaluation/compare.ts";
import type { Lab } from "../lab/lab.ts";
import type { ModelRef } from "../lab/specs.ts";
import type { ReportPart } from "../report/document.ts";
import {
  checkPairs,
  drawLayouts,
  pairAlignment,
  pairRegions,
  WIDE,
} from "./boxes.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import {
  type Fig7Arm,
  fig7Label,
  type Fig7Numbers,
  type Fig7Pair,
  fig7Report,
  type Fig7Row,
} from "./fig7_table.ts";
import { conceptPictures, referencePictures } from "./pictures.ts";
import { EMBEDDINGS, RUN_OPTIONS, TEST_CONCEPTS } from "./presets.ts";
import {
  armCells,
  type ArmScores,
  type Cell,
  estimate,
  nested,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
import {
  CONCEPTS,
  phraseOf,
  type Subject,
  subjects,
  training,
} from "./subjects.ts";

const OPTIONS = {
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 5),
    help: "concepts that are trained, fused and drawn in pairs",
  },
  prompts: RUN_OPTIONS.prompts,
  seeds: RUN_OPTIONS.seeds,
} as const;

type Fig7Plan = Plan<typeof OPTIONS>;

/** Pictures of a pair per arm. */
const PICTURES = 4;

/** Draws a pair by one prompt and by regions, from the same noise. */
async function drawPair(
  lab: Lab,
  { settings }: Fig7Plan,
  model: ModelRef,
  pair: readonly [Subject, Subject],
): Promise<Record<"prompt" | "regions", string[]>> {
  const words = (one: Subject) => `a ${phraseOf(settings, "edlora", one)}`;
  const [left, right] = [words(pair[0]), words(pair[1])];
  const [prompt, regions] = await drawLayouts(
    lab,
    model,
    settings.sampling,
    [
      {
        size: WIDE,
        prompt: `${left} on the left and ${right} on the right on grass`,
      },
      {
        size: WIDE,
        prompt: "grass",
        regions: pairRegions([left, right], true),
      },
    ],
    ["fig7", ...pair.map(({ name }) => name)],
    PICTURES,
  );
  return { prompt, regions };
}

/** The claims that the paper's grids show. */
const CLAIMS: readonly {
  readonly claim: string;
  readonly more: Fig7Arm;
  readonly less: Fig7Arm;
}[] = [
  {
    claim: "ED-LoRA has more identity than LoRA after fusion",
    more: { embedding: "edlora", fusion: "gradient" },
    less: { embedding: "lora", fusion: "gradient" },
  },
  {
    claim: "gradient fusion keeps more identity than weight fusion",
    more: { embedding: "edlora", fusion: "gradient" },
    less: { embedding: "edlora", fusion: "weight" },
  },
];

function claimsOf(
  arms: readonly ArmScores<Fig7Arm>[],
  names: readonly string[],
  conclusive: boolean,
): Comparison[] {
  const rowsOf = (arm: Fig7Arm) =>
    arms.find((one) => fig7Label(one.arm) === fig7Label(arm))!.rows;
  return CLAIMS.map(({ claim, more, less }) => {
    const id = `${fig7Label(more)} > ${fig7Label(less)}`;
    return compare(
      { ...{ id, claim, paper: true, score: "image" }, less: false },
      nested(rowsOf(more), names, "image"),
      nested(rowsOf(less), names, "image"),
      { key: fold(key(0), "fig7", id), conclusive },
    );
  });
}

/** Trains, fuses, draws and scores. */
async function grids(
  lab: Lab,
  plan: Fig7Plan,
): Promise<Outcome<Fig7Numbers>> {
  const { settings, seeds } = plan;
  const { sampling, gradient } = settings;
  const all = await subjects(lab, plan.concepts, plan.prompts, sampling);
  const cells: Cell<Fig7Arm>[] = [];
  let regional: ModelRef | undefined;
  for (const seed of seeds) {
    for (const embedding of EMBEDDINGS) {
      const trained = await lab.train(
        all.map((one) => training(settings, one, embedding, seed)),
      );
      const concepts = trained.map(({ model }) => model.id);
      const [weight, fused] = await lab.fuse([
        { concepts, how: { type: "weight", lambda: 1 / all.length }, seed },
        { concepts, how: { type: "gradient", settings: gradient }, seed },
      ]);
      const add = (fusion: Fig7Arm["fusion"], model?: ModelRef) => {
        const arm = { embedding, fusion };
        cells.push(...armCells(arm, seed, all, trained, model));
      };
      add("none");
      add("weight", weight.model);
      add("gradient", fused.model);
      if (embedding === "edlora") regional ??= fused.model;
    }
  }
  const { arms, drawn } = await scoreCells(lab, settings, all, cells);
  const names = all.map(({ name }) => name);
  const rows = arms.map(({ arm, rows }): Fig7Row => {
    const of = (score: ScoreName | "heldout") =>
      estimate(rows, names, score, fold(key(0), "fig7", fig7Label(arm), score));
    return {
      ...arm,
      ...{ text: of("text"), image: of("image"), heldout: of("heldout") },
    };
  });
  const grid = await conceptPictures(lab, "fig7", drawn, fig7Label, 1);
  const { pairs, part } = await pairsOf(lab, plan, all, regional!);
  const data: Fig7Numbers = {
    ...{ rows, pairs },
    comparisons: claimsOf(arms, names, plan.scale !== "quick"),
  };
  return { data, report: fig7Report(data, [grid, part]) };
}

/** Pairs of neighbours in the list, two concepts per picture. */
async function pairsOf(
  lab: Lab,
  plan: Fig7Plan,
  all: readonly Subject[],
  model: ModelRef,
): Promise<{ pairs: Fig7Pair[]; part: ReportPart }> {
  const found: Fig7Pair[] = [];
  const rows = [];
  for (let i = 0; i + 1 < all.length; i += 2) {
    const pair = [all[i], all[i + 1]] as const;
    const concepts = [pair[0].name, pair[1].name] as const;
    const images = await drawPair(lab, plan, model, pair);
    const [prompt, regions] = [
      await pairAlignment(lab, images.prompt, pair),
      await pairAlignment(lab, images.regions, pair),
    ];
    found.push({
      concepts,
      own: { prompt: prompt.own, regions: regions.own },
      other: { prompt: prompt.other, regions: regions.other },
    });
    rows.push({
      label: concepts.join(" + "),
      cells: [
        ...(await Promise.all(
          pair.map((one) => referencePictures(lab, one, 1)),
        )).flat(),
        await lab.picture(images.prompt[0]),
        await lab.picture(images.regions[0]),
      ],
    });
  }
  const columns = ["left", "right", "one prompt", "regions"];
  const sheet = { columns, rows };
  const title = "Two concepts: one prompt, and a region each";
  return {
    pairs: found,
    part: { type: "pictures", name: "fig7-regions", title, sheet },
  };
}

/** The ablation as grids. */
export const fig7 = experiment({
  name: "fig7",
  summary: "The paper's Fig 7: embedding, fusion and regions as grids",
  about:
    `Trains concepts as LoRA and as ED-LoRA, fuses each by weight and by gradient,
draws the same pictures with each, and draws pairs of concepts by one prompt and with
one region per concept.`,
  options: OPTIONS,
  scales: {
    quick: {
      help: "2 concepts, 2 prompts: smoke test, no conclusion",
      plan: { concepts: TEST_CONCEPTS.slice(0, 2), prompts: 2 },
    },
  },
  check: ({ concepts }) => checkPairs(concepts),
  run: grids,
});
