/**
 * The ablation's statistics: from records of the run to its report.
 *
 * @module
 */
import { fold, key } from "../core/random.ts";
import { textAlignment } from "../evaluation/clip_score.ts";
import {
  hierarchicalBootstrap,
  mean,
  median,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import {
  loadPrompts,
  PROMPT_GROUPS,
  PROMPTS_SHA256,
} from "../micro/prompts.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import { specId } from "../lab/store.ts";
import type {
  AblationNumbers,
  AblationPictures,
  AblationPlan,
  AblationRecord,
} from "./ablation.ts";
import {
  type AblationReport,
  type Arm,
  finite,
  orNull,
  type ScoreEstimate,
  type ScoreName,
  type ScoreRow,
  type Scores,
} from "./ablation_schema.ts";
import { compareArms } from "./claims.ts";
import { capacityOf, distinguishability, drift } from "./measure.ts";
import { EMBEDDINGS } from "./presets.ts";
import {
  conceptMeans,
  openScorer,
  perScore,
  rounded,
  type Scorer,
} from "./scorer.ts";
import { chosenPrompts, type Subject, training } from "./subjects.ts";

/** Least median gain over the lower bound for the result to mean anything. */
const REQUIRED_HEADROOM = 0.1;

const NONE: ScoreEstimate = { mean: null, low: null, high: null };

/**
 * Scores a run's pictures and compares its arms.
 *
 * @param lab The lab.
 * @param plan What was run.
 * @param all Its concepts.
 * @param records What the run gave.
 */
export async function report(
  lab: Lab,
  plan: AblationPlan,
  all: readonly Subject[],
  records: readonly AblationRecord[],
): Promise<AblationNumbers> {
  const { settings, seeds } = plan;
  const of = <T extends AblationRecord["type"]>(type: T) =>
    records.filter((record): record is Extract<AblationRecord, { type: T }> =>
      record.type === type
    );
  const drawn = of("drawn").map(({ pictures }) => pictures);
  const scorer = await openScorer(lab, all, settings.textPrefix);
  const rows = (await scorer.score(drawn)).map((row, i): ScoreRow => ({
    ...row,
    heldout: rounded(drawn[i].heldout.mean),
  }));
  const drifts = await driftTable(lab, drawn);
  const names = all.map(({ name }) => name);
  const rowsOf = (arm: string) => rows.filter((row) => row.arm === arm);
  const arms: Record<string, Arm> = {};
  for (const { arm, seed, model } of of("fused")) {
    if (seed !== seeds[0]) continue;
    arms[arm] = armOf(plan, names, arm, rowsOf, {
      fusionSeconds: model.seconds,
      drift: drifts[arm] ?? null,
      layers: model.layers.map((layer) => ({
        ...layer,
        before: orNull(layer.before),
        after: orNull(layer.after),
        average: orNull(layer.average),
      })),
    });
  }
  const headroom = headroomOf(plan, names, rowsOf);
  const prompts = (await loadPrompts())[0].prompts;
  return {
    format: "mix-of-show ablation 1",
    scale: plan.scale,
    concepts: all.map((one) => ({ name: one.name, class: one.class })),
    seeds: [...seeds],
    ...(plan.planned ? { planned: [...plan.planned] } : {}),
    prompts: {
      perConcept: plan.prompts,
      indices: chosenPrompts(plan.prompts, prompts),
      sha256: PROMPTS_SHA256,
    },
    settings: settings as unknown as Record<string, unknown>,
    base: {
      lower: estimates(names, rowsOf("base"), "base"),
      ceiling: ceiling(all, scorer),
      unrelated: await unrelated(lab, all, scorer, drawn),
      heldout: heldout(names, rowsOf("base"), "base"),
    },
    arms,
    comparisons: compareArms(
      (arm, score) => nested(names, rowsOf(arm), score),
      {
        embeddings: plan.embeddings ?? EMBEDDINGS,
        fusions: [...new Set(Object.values(arms).map(({ fusion }) => fusion))],
        conclusive: plan.scale !== "quick" && all.length > 1 &&
          headroom.enough && plan.planned === undefined,
      },
    ),
    headroom,
    retrieval: {
      chance: 1 / scorer.entries.length,
      gallery: scorer.entries.map(({ label }) => label),
    },
    ...await inspect(lab, plan, all, of("trained")),
    drift: drifts,
    rows,
    groups: groupMeans(rows, all[0].prompts.map(({ group }) => group)),
    training: of("trained").flatMap(({ embedding, seed, singles }) =>
      singles.map(({ concept, seconds, losses }) => (
        { embedding, concept, seed, seconds, losses: [...losses] }
      ))
    ),
    hashes: {
      model: lab.hashes.model,
      clip: lab.hashes.clip,
      data: Object.fromEntries(
        await Promise.all(
          all.map(async ({ name, train }) =>
            [name, await specId([lab.hashes.art, train])] as const
          ),
        ),
      ),
    },
    timings: { ...lab.seconds },
  };
}

type RowsOf = (arm: string) => ScoreRow[];

/** Single against fused in one arm. */
function armOf(
  { settings }: AblationPlan,
  names: readonly string[],
  arm: string,
  rowsOf: RowsOf,
  measured: Pick<Arm, "fusionSeconds" | "drift" | "layers">,
): Arm {
  const [embedding, fusion] = arm.split(".") as [
    Arm["embedding"],
    Arm["fusion"],
  ];
  const single = `${embedding}.single`;
  const means = (name: string, score: ScoreName) =>
    conceptMeans(rowsOf(name), names, score);
  const errors = (name: string) =>
    names.map((concept) =>
      mean(
        rowsOf(name).filter((row) => row.concept === concept)
          .map((row) => -row.heldout!),
      )
    );
  const root = fold(key(0), "statistics");
  return {
    embedding,
    fusion,
    lambda: fusion === "gradient"
      ? null
      : fusion === "weight"
      ? 1 / names.length
      : settings.bestLambda[embedding],
    single: estimates(names, rowsOf(single), single),
    fused: estimates(names, rowsOf(arm), arm),
    loss: perScore((score) =>
      finite(pairedDifference(means(single, score), means(arm, score)))
    ),
    retained: perScore((score) =>
      score === "text" ? NONE : finite(retainedShare(
        means(arm, score),
        means(single, score),
        means("base", score),
        fold(root, "retained", arm, score),
      ))
    ),
    heldout: {
      single: heldout(names, rowsOf(single), single),
      fused: heldout(names, rowsOf(arm), arm),
      // (class word − arm) / (class word − single).
      kept: finite(retainedShare(
        errors(arm),
        errors(single),
        errors("base"),
        fold(root, "retained", arm, "heldout"),
      )),
    },
    ...measured,
  };
}

/** Values of rows by concept, then seed. */
function nested(
  names: readonly string[],
  rows: readonly ScoreRow[],
  score: ScoreName,
): number[][][] {
  return names.map((name) =>
    rows.filter(({ concept }) => concept === name).map((row) => row[score])
  );
}

/** Means with hierarchical bootstrap: prompts in seeds in concepts. */
function estimates(
  names: readonly string[],
  rows: readonly ScoreRow[],
  arm: string,
): Scores {
  return perScore((score) =>
    finite(hierarchicalBootstrap(
      nested(names, rows, score),
      fold(key(0), "interval", arm, score),
    ))
  );
}

/** Mean held-out error with hierarchical bootstrap: seeds in concepts. */
function heldout(
  names: readonly string[],
  rows: readonly ScoreRow[],
  arm: string,
): ScoreEstimate {
  const values = names.map((name) =>
    rows.filter(({ concept }) => concept === name).map((row) => row.heldout!)
  );
  const random = fold(key(0), "interval", arm, "heldout");
  return finite(hierarchicalBootstrap(values, random));
}

/** What the references score among themselves: as good as the real thing. */
function ceiling(all: readonly Subject[], scorer: Scorer): Scores {
  const own = all.map((subject) => scorer.ceiling(subject));
  return perScore((score) =>
    score === "text" ? NONE : finite(hierarchicalBootstrap(
      own.map((rows) => rows.map((row) => row[score])),
      fold(key(0), "ceiling", score),
    ))
  );
}

/** Text alignment of the base's pictures with captions of other prompts. */
async function unrelated(
  lab: Lab,
  all: readonly Subject[],
  scorer: Scorer,
  drawn: readonly AblationPictures[],
): Promise<ScoreEstimate> {
  if (all[0].prompts.length < 2) return NONE;
  const values: number[][][] = [];
  for (const subject of all) {
    const cells = drawn.filter((one) =>
      one.arm === "base" && one.subject === subject
    );
    const captions = scorer.captions(subject);
    values.push(
      (await wholes(lab, cells.map(({ images }) => images))).map((pictures) =>
        pictures.map((whole, i) =>
          mean(
            captions.filter((_, j) => j !== i)
              .map((caption) => textAlignment(whole, caption)),
          )
        )
      ),
    );
  }
  return finite(hierarchicalBootstrap(values, fold(key(0), "unrelated")));
}

/** Whole pictures, embedded. */
async function wholes(lab: Lab, lists: readonly (readonly string[])[]) {
  const embedded = await lab.embed(
    lists.map((images) => ({ images, regions: images.map(() => []) })),
  );
  return embedded.map((pictures) => pictures.map(({ whole }) => whole));
}

/** Mean drift of each arm but the base, over concepts and seeds. */
async function driftTable(
  lab: Lab,
  drawn: readonly AblationPictures[],
): Promise<Record<string, number>> {
  const free = await wholes(lab, drawn.map((one) => one.free));
  const values = new Map<string, number[]>();
  for (const [i, { arm, seed, subject }] of drawn.entries()) {
    if (arm === "base") continue;
    const base = drawn.findIndex((one) =>
      one.arm === "base" && one.seed === seed && one.subject === subject
    );
    const moved = drift(free[i], free[base]);
    values.set(arm, [...values.get(arm) ?? [], moved]);
  }
  return Object.fromEntries(
    [...values].map(([arm, list]) => [arm, rounded(mean(list))]),
  );
}

/** ED-LoRA's gain over the class word, or LoRA's where only that was run. */
function headroomOf(
  { embeddings = EMBEDDINGS }: AblationPlan,
  names: readonly string[],
  rowsOf: RowsOf,
): AblationReport["headroom"] {
  const own = embeddings.includes("edlora") ? "edlora" : embeddings[0];
  const lower = conceptMeans(rowsOf("base"), names, "image");
  const gain = median(
    conceptMeans(rowsOf(`${own}.single`), names, "image")
      .map((value, i) => value - lower[i]),
  );
  return {
    median: orNull(gain),
    required: REQUIRED_HEADROOM,
    enough: gain >= REQUIRED_HEADROOM,
  };
}

function groupMeans(
  rows: readonly ScoreRow[],
  groups: readonly string[],
): AblationReport["groups"] {
  const arms = [...new Set(rows.map(({ arm }) => arm))];
  return arms.flatMap((arm) =>
    PROMPT_GROUPS.flatMap((group) => {
      const at = groups.flatMap((one, i) => one === group ? [i] : []);
      if (at.length === 0) return [];
      const of = (score: "text" | "image") =>
        rounded(mean(
          rows.filter((row) => row.arm === arm)
            .map((row) => mean(at.map((i) => row[score][i]))),
        ));
      return [{ arm, group, text: of("text"), image: of("image") }];
    })
  );
}

/** What can be read off the trained concepts of the first seed. */
async function inspect(
  lab: Lab,
  { settings, seeds }: AblationPlan,
  all: readonly Subject[],
  trained: readonly Extract<AblationRecord, { type: "trained" }>[],
): Promise<Pick<AblationReport, "capacity" | "distinguishability">> {
  const { rank } = settings;
  const n = all.length;
  const model = await loadModel(lab.folders.model);
  try {
    const alike: AblationReport["distinguishability"] = {};
    for (const { embedding, seed, singles } of trained) {
      if (seed !== seeds[0]) continue;
      alike[embedding] = await distinguishability(
        model,
        lab.folders.store,
        singles.map((one, i) => ({
          ask: training(settings, all[i], embedding, seed),
          id: one.model.id,
        })),
      );
    }
    return {
      capacity: { rank, n, ...capacityOf(model, n, rank) },
      distinguishability: alike,
    };
  } finally {
    disposeModel(model);
  }
}
