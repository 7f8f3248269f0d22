/**
 * The paper's Table 1, its numbers by concept (Table 3) and its grids (Fig 6):
 * text and image alignment of every method, of a concept alone and after fusion,
 * each method with its own fusion.
 *
 * @module
 */
import { listOf, oneOf } from "../core/options.ts";
import { fold, key } from "../core/random.ts";
import {
  method as methodNamed,
  type MethodName,
} from "../customize/methods.ts";
import type { TrainConfig } from "../customize/train.ts";
import {
  type Claim,
  compare,
  type Comparison,
  rounded,
} from "../evaluation/compare.ts";
import type { Lab } from "../lab/lab.ts";
import type { FuseSpec, OwnPictures, SamplingSettings } from "../lab/specs.ts";
import { loadPrompts } from "../micro/prompts.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import { ordinaryCaptions } from "./merge.ts";
import { conceptPictures } from "./pictures.ts";
import {
  type ExperimentPreset,
  RUN_OPTIONS,
  TEST_CONCEPTS,
} from "./presets.ts";
import {
  armCells,
  type Cell,
  conceptMeans,
  type ConceptScores,
  estimate,
  nested,
  perScore,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
import {
  CONCEPTS,
  oneDomain,
  type Subject,
  subjects,
  training,
} from "./subjects.ts";
import {
  armLabel,
  type Table1Arm,
  type Table1Numbers,
  table1Report,
  type Table1Row,
} from "./table1_table.ts";

/** How a method's concepts are fused, as the paper does it. */
type OwnFusion = "tokens" | "constrained" | "weight" | "gradient" | "sum";

/** The methods that can be compared, each with its own fusion. */
const FUSION_OF: Partial<Record<MethodName, OwnFusion>> = {
  "textual-inversion": "tokens",
  "p+": "tokens",
  "custom-diffusion": "constrained",
  "dreambooth-lora": "weight",
  "dreambooth": "weight",
  "svdiff": "weight",
  "lora": "weight",
  "pivotal-tuning": "weight",
  "orthogonal-adaptation": "sum",
  "ed-lora": "gradient",
};

/** Names of the methods, in the order of the table. */
const TABLE_METHODS = Object.keys(FUSION_OF) as MethodName[];

/** Those of the paper's table, and textual inversion. */
const PAPER_METHODS: readonly MethodName[] = [
  "textual-inversion",
  "p+",
  "custom-diffusion",
  "lora",
  "ed-lora",
];

const OPTIONS = {
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 5),
    help: "concepts that are trained and fused",
  },
  methods: {
    name: "method",
    type: listOf(oneOf(TABLE_METHODS)),
    default: PAPER_METHODS,
    help: TABLE_METHODS.join(", "),
  },
  prompts: RUN_OPTIONS.prompts,
  seeds: RUN_OPTIONS.seeds,
} as const;

/** What is compared. */
export type Table1Plan = Plan<typeof OPTIONS>;

/**
 * The learning rates of a method on the preset's model. Those that are not of
 * embeddings are the method's own times the factor between the preset's and the
 * paper's LoRA.
 *
 * @param settings The preset.
 * @param name The method.
 */
export function ratesOf(
  { preset, train: { lr } }: ExperimentPreset,
  name: MethodName,
): TrainConfig["lr"] {
  const own = methodNamed(name, preset).train.lr;
  const paper = methodNamed("ed-lora", preset).train.lr;
  const given = lr ?? paper;
  const times = (group: "textEncoder" | "unet") =>
    own[group] * given[group] / paper[group];
  return {
    embedding: own.embedding,
    textEncoder: times("textEncoder"),
    unet: times("unet"),
  };
}

/** Class pictures per concept: twice as many as training pictures. */
const CLASS_PICTURES = 24;

/**
 * Pictures of each concept's class, drawn by the base model, for methods with
 * prior preservation (DreamBooth).
 *
 * @param lab The lab.
 * @param all The concepts.
 * @param sampling How pictures are drawn.
 */
async function classPictures(
  lab: Lab,
  all: readonly Subject[],
  sampling: SamplingSettings,
): Promise<OwnPictures[]> {
  const captions = all.map(({ class: word }) => `photo of a ${word}`);
  const drawn = await lab.draw(captions.map((text) => ({
    model: { type: "base" },
    sampling,
    samples: Array.from(
      { length: CLASS_PICTURES },
      (_, i) => ({ text, noise: [0, "class", text, i] }),
    ),
  })));
  return drawn.map((images, i) => ({
    of: "own",
    pictures: images.map((image) => ({ image, captions: [captions[i]] })),
  }));
}

/** How the lab fuses concepts of a method. */
function fusionOf(
  fusion: OwnFusion,
  n: number,
  { gradient }: ExperimentPreset,
  captions: readonly string[],
): FuseSpec["how"] {
  switch (fusion) {
    case "tokens":
    case "weight":
      return { type: "weight", lambda: 1 / n };
    case "sum":
      return { type: "weight", lambda: 0.6 };
    case "constrained":
      return {
        type: "merge",
        settings: { method: "custom_diffusion", captions },
      };
    case "gradient":
      return { type: "gradient", settings: gradient };
  }
}

/** Trains every method, fuses, draws and scores. */
async function compareMethods(
  lab: Lab,
  plan: Table1Plan,
): Promise<Outcome<Table1Numbers>> {
  const { settings, seeds, methods } = plan;
  const { sampling, gradient } = settings;
  const all = await subjects(lab, plan.concepts, plan.prompts, sampling);
  const captions = ordinaryCaptions(await loadPrompts());
  const classes =
    methods.some((name) =>
        methodNamed(name, settings.preset).train.priorWeight > 0
      )
      ? await classPictures(lab, all, sampling)
      : [];
  const cells: Cell<Table1Arm>[] = [];
  for (const seed of seeds) {
    const base: Table1Arm = { method: null, fused: false };
    cells.push(...armCells(base, seed, all));
    for (const name of methods) {
      const change = { lr: ratesOf(settings, name) };
      const preserves =
        methodNamed(name, settings.preset).train.priorWeight > 0;
      const trained = await lab.train(all.map((one, i) => ({
        ...training(settings, one, name, seed, change),
        ...(preserves && { prior: classes[i] }),
      })));
      const alone = { method: name, fused: false };
      cells.push(...armCells(alone, seed, all, trained));
      const fusion = FUSION_OF[name]!;
      const { templates, steps, images, layers } = gradient;
      const published = fusion !== "constrained" ? [] : await lab.publish(
        trained.map(({ model }) => ({
          ...{ concept: model.id, pictures: 1, seed },
          settings: { templates, steps, images, layers },
        })),
      );
      const [fused] = await lab.fuse([{
        concepts: trained.map(({ model }) => model.id),
        how: fusionOf(fusion, all.length, settings, captions),
        ...(published.length > 0 && {
          published: published.map(({ id }) => id),
        }),
        seed,
      }]);
      const together = { method: name, fused: true };
      cells.push(...armCells(together, seed, all, trained, fused.model));
    }
  }
  const { arms, drawn } = await scoreCells(lab, settings, all, cells);
  const names = all.map(({ name }) => name);
  const data: Table1Numbers = {
    rows: arms.map(({ arm, rows }) => rowOf(arm, rows, names)),
    comparisons: claimsOf(arms, names, plan),
  };
  const sheet = await conceptPictures(lab, "fig6", drawn, armLabel, 1);
  return { data, report: table1Report(data, sheet) };
}

function rowOf(
  arm: Table1Arm,
  rows: readonly ConceptScores[],
  names: readonly string[],
): Table1Row {
  const random = (score: string) =>
    fold(key(0), "table1", armLabel(arm), score);
  const of = (score: ScoreName | "heldout") =>
    estimate(rows, names, score, random(score));
  const own = (score: "text" | "image" | "heldout") =>
    conceptMeans(rows, names, score);
  const [text, image, heldout] = [own("text"), own("image"), own("heldout")];
  return {
    ...arm,
    ...perScore(of),
    heldout: of("heldout"),
    concepts: Object.fromEntries(names.map((name, i) => [name, {
      text: rounded(text[i]),
      image: rounded(image[i]),
      heldout: rounded(heldout[i]),
    }])),
  };
}

/** Claims of the paper: the first of two arms has higher image alignment. */
const CLAIMS: readonly (Omit<Claim, "score" | "less" | "id"> & {
  readonly more: Table1Arm;
  readonly less: Table1Arm;
})[] = [
  {
    claim: "embeddings alone have less identity than an adapter (P+)",
    paper: true,
    more: { method: "ed-lora", fused: false },
    less: { method: "p+", fused: false },
  },
  {
    claim: "keys and values alone have less identity (Custom Diffusion)",
    paper: true,
    more: { method: "ed-lora", fused: false },
    less: { method: "custom-diffusion", fused: false },
  },
  {
    claim: "LoRA loses identity when it is fused by weight",
    paper: true,
    more: { method: "lora", fused: false },
    less: { method: "lora", fused: true },
  },
  {
    claim: "Mix-of-Show keeps more identity than LoRA when fused",
    paper: true,
    more: { method: "ed-lora", fused: true },
    less: { method: "lora", fused: true },
  },
  {
    claim: "Mix-of-Show keeps more identity than Custom Diffusion when fused",
    paper: true,
    more: { method: "ed-lora", fused: true },
    less: { method: "custom-diffusion", fused: true },
  },
];

function claimsOf(
  arms: readonly {
    readonly arm: Table1Arm;
    readonly rows: readonly ConceptScores[];
  }[],
  names: readonly string[],
  plan: Table1Plan,
): Comparison[] {
  const rowsOf = (arm: Table1Arm) =>
    arms.find((one) => armLabel(one.arm) === armLabel(arm))?.rows;
  return CLAIMS.flatMap(({ claim, paper, more, less }) => {
    const [a, b] = [rowsOf(more), rowsOf(less)];
    if (!a || !b) return [];
    return (["image", "heldout"] as const).map((score) => {
      const id = `${armLabel(more)} > ${armLabel(less)}`;
      return compare(
        // A lower error means more identity.
        { ...{ id, claim, paper, score }, less: score === "heldout" },
        nested(a, names, score),
        nested(b, names, score),
        {
          key: fold(key(0), "table1", id, score),
          conclusive: plan.scale !== "quick",
        },
      );
    });
  });
}

/** Table 1, Table 3 and Fig 6. */
export const table1 = experiment({
  name: "table1",
  also: ["table3", "fig6"],
  summary: "The paper's Table 1 and 3, Fig 6: methods alone and fused",
  about:
    `Trains concepts with every method, fuses each method's concepts in its own
way (tokens side by side, Custom Diffusion's constrained merge, the average of
LoRAs, gradient fusion), draws the same pictures with each, and scores them. Table
3 has the same scores by concept, Fig 6 is the sheet of pictures.`,
  options: OPTIONS,
  scales: {
    quick: {
      help: "2 concepts, 2 prompts: smoke test, no conclusion",
      plan: { concepts: TEST_CONCEPTS.slice(0, 2), prompts: 2 },
    },
    full: {
      help: "12 concepts, 20 prompts, 3 seeds, every method",
      plan: {
        concepts: TEST_CONCEPTS,
        seeds: [0, 1, 2],
        methods: TABLE_METHODS,
      },
    },
  },
  check: ({ concepts }) => oneDomain(concepts),
  run: compareMethods,
});
