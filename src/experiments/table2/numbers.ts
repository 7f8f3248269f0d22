/**
 * The ablation's numbers: scores of every arm, what fusion loses and keeps, the
 * claims, and properties of the concepts themselves.
 *
 * @module
 */
import { fold, key } from "../../core/random.ts";
import { disposeConcept } from "../../customize/concept.ts";
import { method, startConcept } from "../../customize/methods.ts";
import type { ClipVector } from "../../evaluation/clip.ts";
import { cosine, textAlignment } from "../../evaluation/clip_score.ts";
import { finite, orNull, rounded } from "../../evaluation/compare.ts";
import {
  conceptVectors,
  pairCosines,
} from "../../evaluation/concept_cosines.ts";
import {
  hierarchicalBootstrap,
  mean,
  median,
  pairedDifference,
  retainedShare,
} from "../../evaluation/statistics.ts";
import { loadConcept } from "../../formats/concept_file.ts";
import { capacityOf } from "../../fusion/capacity.ts";
import type { Lab } from "../../lab/lab.ts";
import { conceptKey } from "../../lab/specs.ts";
import { pathOf, specId } from "../../lab/store.ts";
import {
  chosenPrompts,
  loadPrompts,
  PROMPT_GROUPS,
  PROMPTS_SHA256,
} from "../../micro/prompts.ts";
import { disposeModel, loadModel } from "../../models/model.ts";
import type { Interval } from "../../report/format.ts";
import {
  conceptMeans,
  estimate,
  nested,
  openScorer,
  perScore,
  type ScoreName,
  type Scorer,
} from "../scores.ts";
import { type Subject, training } from "../subjects.ts";
import { compareArms } from "./claims.ts";
import type { AblationPictures, AblationPlan, AblationWork } from "./draw.ts";
import type {
  AblationNumbers,
  AblationReport,
  Arm,
  ScoreRow,
  Scores,
} from "./json.ts";

/**
 * Minimum median gain over the lower bound for a conclusive result: in image
 * alignment, and as a share of the class word's held-out error.
 */
const REQUIRED_HEADROOM = 0.1;

const NONE: Interval = { mean: null, low: null, high: null };

const ROOT = key(0);

/** Scores of a run: rows of an arm, and the concepts they are of. */
interface Table {
  readonly names: readonly string[];
  readonly rowsOf: (arm: string) => ScoreRow[];
}

/**
 * Scores a run's pictures and compares its arms.
 *
 * @param lab The lab.
 * @param plan What was run; `planned` are all seeds, if `seeds` are only some
 * of them.
 * @param all The concepts.
 * @param work What was trained, fused and drawn.
 */
export async function numbersOf(
  lab: Lab,
  plan: AblationPlan & { readonly planned?: readonly number[] },
  all: readonly Subject[],
  { trained, fused, drawn }: AblationWork,
): Promise<AblationNumbers> {
  const { settings, seeds, concepts, embeddings, fusions, scale } = plan;
  const scorer = await openScorer(lab, all, settings.textPrefix);
  const rows = (await scorer.score(drawn)).map((row, i): ScoreRow => ({
    arm: drawn[i].arm,
    ...row,
    heldout: rounded(drawn[i].heldout.mean),
  }));
  const rowsOf = (arm: string) => rows.filter((row) => row.arm === arm);
  const table: Table = { names: concepts, rowsOf };
  const drift = await drifts(lab, drawn);
  const headroom = headroomOf(plan, table);
  const { prompts } = (await loadPrompts())[0];
  const { model, clip, art } = lab.hashes;
  return {
    format: "mix-of-show ablation 1",
    scale,
    concepts: all.map((one) => ({ name: one.name, class: one.class })),
    seeds: [...seeds],
    planned: plan.planned && [...plan.planned],
    prompts: {
      perConcept: plan.prompts,
      indices: chosenPrompts(plan.prompts, prompts),
      sha256: PROMPTS_SHA256,
    },
    settings: { ...settings },
    base: {
      lower: estimates(table, "base"),
      ceiling: ceiling(all, scorer),
      unrelated: await unrelated(lab, all, scorer, drawn),
      heldout: heldout(table, "base"),
    },
    arms: Object.fromEntries(
      fused.filter(({ seed }) => seed === seeds[0]).map((
        { arm, model },
      ) => [arm, {
        ...armOf(plan, table, arm),
        drift: drift[arm] ?? null,
        fusionSeconds: model.seconds,
        layers: model.layers.map(({ before, after, average, ...layer }) => ({
          ...layer,
          before: orNull(before),
          after: orNull(after),
          average: orNull(average),
        })),
      }]),
    ),
    comparisons: compareArms(
      (arm, score) => nested(rowsOf(arm), concepts, score),
      {
        ...{ embeddings, fusions },
        conclusive: (score) =>
          scale !== "quick" && concepts.length > 1 &&
          (score === "heldout" ? headroom.heldout! : headroom).enough &&
          plan.planned === undefined,
      },
    ),
    headroom,
    retrieval: {
      chance: 1 / scorer.entries.length,
      gallery: scorer.entries.map(({ label }) => label),
    },
    ...await inspect(lab, plan, all, trained),
    drift,
    rows,
    groups: groupMeans(rows, all[0].prompts.map(({ group }) => group)),
    training: trained.flatMap(({ embedding, seed, singles }) =>
      singles.map(({ concept, seconds, losses }) => (
        { embedding, concept, seed, seconds, losses: [...losses] }
      ))
    ),
    hashes: {
      ...{ model, clip },
      data: Object.fromEntries(
        await Promise.all(
          all.map(async ({ name, train }) =>
            [name, await specId([art, train])] as const
          ),
        ),
      ),
    },
  };
}

/** Means of an arm with intervals. */
function estimates({ names, rowsOf }: Table, arm: string): Scores {
  return perScore((score) =>
    estimate(rowsOf(arm), names, score, fold(ROOT, "interval", arm, score))
  );
}

/** Mean held-out error of an arm. */
function heldout({ names, rowsOf }: Table, arm: string): Interval {
  const random = fold(ROOT, "interval", arm, "heldout");
  return estimate(rowsOf(arm), names, "heldout", random);
}

/** Single against fused in one arm. */
function armOf(
  { settings, concepts }: AblationPlan,
  table: Table,
  arm: string,
): Omit<Arm, "drift" | "fusionSeconds" | "layers"> {
  const [embedding, fusion] = arm.split(".") as [
    Arm["embedding"],
    Arm["fusion"],
  ];
  const single = `${embedding}.single`;
  const lambdas = {
    gradient: null,
    weight: 1 / concepts.length,
    weight_best_lambda: settings.sumStrength[embedding] / concepts.length,
  };
  const means = (of: string, score: ScoreName | "heldout") =>
    conceptMeans(table.rowsOf(of), table.names, score);
  // For errors the signs are reversed: (class word − arm) / (class word −
  // single).
  const worth = (of: string, score: ScoreName | "heldout") =>
    means(of, score).map((value) => score === "heldout" ? -value : value);
  const kept = (score: ScoreName | "heldout") =>
    finite(retainedShare(
      worth(arm, score),
      worth(single, score),
      worth("base", score),
      fold(ROOT, "statistics", "retained", arm, score),
    ));
  return {
    ...{ embedding, fusion, lambda: lambdas[fusion] },
    single: estimates(table, single),
    fused: estimates(table, arm),
    loss: perScore((score) =>
      finite(pairedDifference(means(single, score), means(arm, score)))
    ),
    retained: perScore((score) => score === "text" ? NONE : kept(score)),
    heldout: {
      single: heldout(table, single),
      fused: heldout(table, arm),
      kept: kept("heldout"),
    },
  };
}

/** Scores of the references against each other: the upper bound. */
function ceiling(all: readonly Subject[], scorer: Scorer): Scores {
  const own = all.map((subject) => scorer.ceiling(subject));
  return perScore((score) =>
    score === "text" ? NONE : finite(hierarchicalBootstrap(
      own.map((rows) => rows.map((row) => row[score])),
      fold(ROOT, "ceiling", score),
    ))
  );
}

/** Text alignment of the base's pictures with captions of other prompts. */
async function unrelated(
  lab: Lab,
  all: readonly Subject[],
  scorer: Scorer,
  drawn: readonly AblationPictures[],
): Promise<Interval> {
  if (all[0].prompts.length < 2) return NONE;
  const values = await Promise.all(all.map(async (subject) => {
    const captions = scorer.captions(subject);
    const others = (whole: ClipVector, i: number) =>
      mean(
        captions.filter((_, j) => j !== i)
          .map((caption) => textAlignment(whole, caption)),
      );
    const cells = drawn.filter((one) =>
      one.arm === "base" && one.subject === subject
    );
    const pictures = await wholes(lab, cells.map(({ images }) => images));
    return pictures.map((rows) => rows.map(others));
  }));
  return finite(hierarchicalBootstrap(values, fold(ROOT, "unrelated")));
}

/** Whole pictures, embedded. */
async function wholes(lab: Lab, lists: readonly (readonly string[])[]) {
  const embedded = await lab.embed(
    lists.map((images) => ({ images, regions: images.map(() => []) })),
  );
  return embedded.map((pictures) => pictures.map(({ whole }) => whole));
}

/**
 * Distance of each arm's concept-free pictures to those of the base with the
 * same noise: mean of 1 − cosine over concepts and seeds.
 */
async function drifts(
  lab: Lab,
  drawn: readonly AblationPictures[],
): Promise<Record<string, number>> {
  const free = await wholes(lab, drawn.map((one) => one.free));
  const moved = drawn.map(({ seed, subject }, i) => {
    const base = drawn.findIndex((one) =>
      one.arm === "base" && one.seed === seed && one.subject === subject
    );
    return mean(free[i].map((row, k) => 1 - cosine(row, free[base][k])));
  });
  const arms = Map.groupBy(drawn.keys(), (i) => drawn[i].arm);
  arms.delete("base");
  return Object.fromEntries(
    [...arms].map((
      [arm, own],
    ) => [arm, rounded(mean(own.map((i) => moved[i])))]),
  );
}

/**
 * ED-LoRA's gain over the class word, or LoRA's where only that was run: of
 * image alignment, and of held-out error as a share of the class word's.
 */
function headroomOf(
  { embeddings }: AblationPlan,
  { names, rowsOf }: Table,
): AblationReport["headroom"] {
  const own = embeddings.includes("edlora") ? "edlora" : embeddings[0];
  const means = (arm: string, score: "image" | "heldout") =>
    conceptMeans(rowsOf(arm), names, score);
  const [lower, single] = ["base", `${own}.single`]
    .map((arm) => means(arm, "image"));
  const [error, left] = ["base", `${own}.single`]
    .map((arm) => means(arm, "heldout"));
  const room = (gains: readonly number[]) => {
    const gain = median(gains);
    return {
      median: orNull(gain),
      required: REQUIRED_HEADROOM,
      enough: gain >= REQUIRED_HEADROOM,
    };
  };
  return {
    ...room(single.map((value, i) => value - lower[i])),
    heldout: room(left.map((value, i) => 1 - value / error[i])),
  };
}

/** Means by arm and prompt group. */
function groupMeans(
  rows: readonly ScoreRow[],
  groups: readonly string[],
): AblationReport["groups"] {
  const arms = [...Map.groupBy(rows, ({ arm }) => arm)];
  return arms.flatMap(([arm, own]) =>
    PROMPT_GROUPS.filter((group) => groups.includes(group)).map((group) => {
      const at = groups.flatMap((one, i) => one === group ? [i] : []);
      const of = (score: ScoreName) =>
        rounded(mean(own.map((row) => mean(at.map((i) => row[score][i])))));
      return { arm, group, text: of("text"), image: of("image") };
    })
  );
}

/** Properties of the trained concepts of the first seed. */
async function inspect(
  lab: Lab,
  { settings, seeds }: AblationPlan,
  all: readonly Subject[],
  trained: AblationWork["trained"],
): Promise<Pick<AblationReport, "capacity" | "distinguishability">> {
  const { rank, layers } = settings;
  const base = await loadModel(lab.folders.model);
  try {
    const distinguishability: AblationReport["distinguishability"] = {};
    for (const { embedding, seed, singles } of trained) {
      if (seed !== seeds[0]) continue;
      const before: ClipVector[][] = [], after: ClipVector[][] = [];
      for (const [i, { model }] of singles.entries()) {
        const ask = training(settings, all[i], embedding, seed);
        const how = method(ask.method, ask.preset, ask.config);
        const start = await startConcept(base, how, {
          name: ask.concept,
          classWord: ask.classWord,
          key: conceptKey(ask.seed, ask.concept),
          rank,
        });
        const file = pathOf.concept(lab.folders.store, model.id);
        const end = await loadConcept(file, base);
        before.push(await conceptVectors(start));
        after.push(await conceptVectors(end));
        [start, end].forEach(disposeConcept);
      }
      distinguishability[embedding] = {
        before: pairCosines(before),
        after: pairCosines(after),
      };
    }
    const n = all.length;
    const capacity = { rank, n, ...capacityOf(base, n, rank, layers) };
    return { capacity, distinguishability };
  } finally {
    disposeModel(base);
  }
}
