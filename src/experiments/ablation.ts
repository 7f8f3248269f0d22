/**
 * The ablation: runs Table 2 and gathers its numbers.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import { disposeConcept } from "../customize/concept.ts";
import { method, startConcept } from "../customize/methods.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import { cosine, textAlignment } from "../evaluation/clip_score.ts";
import {
  type Comparison,
  finite,
  orNull,
  rounded,
} from "../evaluation/compare.ts";
import { conceptVectors, pairCosines } from "../evaluation/concept_cosines.ts";
import {
  hierarchicalBootstrap,
  mean,
  median,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import { loadConcept } from "../formats/concept_file.ts";
import { capacityOf } from "../fusion/capacity.ts";
import type { Fused, Lab } from "../lab/lab.ts";
import { NotInStore } from "../lab/runner.ts";
import { conceptKey } from "../lab/specs.ts";
import { pathOf, specId } from "../lab/store.ts";
import { conceptOf } from "../micro/in_domain.ts";
import {
  chosenPrompts,
  loadPrompts,
  PROMPT_GROUPS,
  PROMPTS_SHA256,
} from "../micro/prompts.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import type { Interval } from "../report/format.ts";
import type { AblationReport, Arm, ScoreRow, Scores } from "./ablation_json.ts";
import { compareArms } from "./claims.ts";
import { EMBEDDINGS } from "./presets.ts";
import {
  conceptMeans,
  estimate,
  nested,
  openScorer,
  perScore,
  type ScoreName,
  type Scorer,
} from "./scores.ts";
import {
  checkSettings,
  oneDomain,
  type Subject,
  subjects,
  training,
} from "./subjects.ts";
import {
  type AblationPictures,
  type AblationPlan,
  type AblationRecord,
  FUSIONS,
  table2,
} from "./table2.ts";

/** A report without what only the caller knows. */
export type AblationNumbers = Omit<AblationReport, "created" | "machine">;

/**
 * Runs the ablation, seed by seed. What the lab's store has is not done again: a
 * killed run continues, and the number of workers changes nothing.
 *
 * @param lab The lab.
 * @param plan What is run.
 * @returns The report, but for what only the caller knows, and all pictures.
 * @throws Before work starts, if an option is wrong.
 */
export async function ablation(
  lab: Lab,
  plan: AblationPlan,
): Promise<{
  report: AblationNumbers;
  pictures: AblationPictures[];
}> {
  const { settings, seeds, concepts } = plan;
  const { embeddings = EMBEDDINGS, fusions = FUSIONS } = plan;
  checkSettings(settings, seeds);
  for (const list of [embeddings, fusions]) {
    if (new Set<string>(list).size !== list.length) {
      throw cannot("run the ablation", "each arm once", list);
    }
  }
  concepts.forEach(conceptOf);
  oneDomain(concepts);
  const all = await subjects(lab, concepts, plan.prompts, settings.sampling);
  const records: AblationRecord[] = [];
  for (const seed of seeds) {
    const one = { ...plan, seeds: [seed] };
    const own: AblationRecord[] = [];
    for await (const record of table2(lab, one, all)) own.push(record);
    records.push(...own);
    // Scored at once, so that a run that stops has something whole to report.
    if (seeds.length > 1) await numbersOf(lab, one, all, own);
  }
  return {
    report: await numbersOf(lab, plan, all, records),
    pictures: records.flatMap((record) =>
      record.type === "drawn" ? [record.pictures] : []
    ),
  };
}

/**
 * The seeds whose results the store has, all of them: what a stopped run can be
 * reported on, with {@linkcode AblationPlan.planned}.
 *
 * @param lab A lab whose runner is `nowhere`.
 * @param plan What was run.
 */
export async function finishedSeeds(
  lab: Lab,
  plan: AblationPlan,
): Promise<number[]> {
  const finished: number[] = [];
  for (const seed of plan.seeds) {
    try {
      await ablation(lab, { ...plan, seeds: [seed] });
      finished.push(seed);
    } catch (error) {
      if (!(error instanceof NotInStore)) throw error;
    }
  }
  return finished;
}

/** Least median gain over the lower bound for the result to mean anything. */
const REQUIRED_HEADROOM = 0.1;

const NONE: Interval = { mean: null, low: null, high: null };

const ROOT = key(0);

/** Scores of a run: rows of an arm, and the concepts they are of. */
interface Table {
  readonly names: readonly string[];
  readonly rowsOf: (arm: string) => ScoreRow[];
}

/** Scores a run's pictures and compares its arms. */
async function numbersOf(
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
    arm: drawn[i].arm,
    ...row,
    heldout: rounded(drawn[i].heldout.mean),
  }));
  const names = all.map(({ name }) => name);
  const rowsOf = (arm: string) => rows.filter((row) => row.arm === arm);
  const table: Table = { names, rowsOf };
  const drift = await drifts(lab, drawn);
  const arms = Object.fromEntries(
    of("fused").filter(({ seed }) => seed === seeds[0]).map((
      { arm, model },
    ) => [arm, armOf(plan, table, arm, model, drift[arm] ?? null)]),
  );
  const headroom = headroomOf(plan, table);
  const prompts = (await loadPrompts())[0].prompts;
  const groups = all[0].prompts.map(({ group }) => group);
  const { model, clip, art } = lab.hashes;
  return {
    format: "mix-of-show ablation 1",
    scale: plan.scale,
    concepts: all.map((one) => ({ name: one.name, class: one.class })),
    seeds: [...seeds],
    planned: plan.planned && [...plan.planned],
    prompts: {
      perConcept: plan.prompts,
      indices: chosenPrompts(plan.prompts, prompts),
      sha256: PROMPTS_SHA256,
    },
    settings: settings as unknown as Record<string, unknown>,
    base: {
      lower: estimates(table, "base"),
      ceiling: ceiling(all, scorer),
      unrelated: await unrelated(lab, all, scorer, drawn),
      heldout: heldout(table, "base"),
    },
    arms,
    comparisons: comparisons(plan, table, headroom.enough),
    headroom,
    retrieval: {
      chance: 1 / scorer.entries.length,
      gallery: scorer.entries.map(({ label }) => label),
    },
    ...await inspect(lab, plan, all, of("trained")),
    drift,
    rows,
    groups: groupMeans(rows, groups),
    training: of("trained").flatMap(({ embedding, seed, singles }) =>
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
    timings: { ...lab.seconds },
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
  { seconds, layers }: Fused,
  drift: Arm["drift"],
): Arm {
  const [embedding, fusion] = arm.split(".") as [
    Arm["embedding"],
    Arm["fusion"],
  ];
  const single = `${embedding}.single`;
  const means = (of: string, score: ScoreName | "heldout") =>
    conceptMeans(table.rowsOf(of), table.names, score);
  // Errors count the other way round: (class word − arm) / (class word − single).
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
    embedding,
    fusion,
    lambda: fusion === "gradient"
      ? null
      : fusion === "weight"
      ? 1 / concepts.length
      : settings.bestLambda[embedding],
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
    fusionSeconds: seconds,
    drift,
    layers: layers.map((layer) => ({
      ...layer,
      before: orNull(layer.before),
      after: orNull(layer.after),
      average: orNull(layer.average),
    })),
  };
}

/** Every claim about the arms that there are. */
function comparisons(
  { scale, planned, embeddings = EMBEDDINGS, fusions = FUSIONS }: AblationPlan,
  { names, rowsOf }: Table,
  enough: boolean,
): Comparison[] {
  return compareArms((arm, score) => nested(rowsOf(arm), names, score), {
    ...{ embeddings, fusions },
    conclusive: scale !== "quick" && names.length > 1 && enough &&
      planned === undefined,
  });
}

/** What the references score among themselves: as good as the real thing. */
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
 * How far each arm's concept-free pictures moved from those of the base with the
 * same noise: mean of 1 − cosine over concepts and seeds.
 */
async function drifts(
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
    const moved = mean(free[i].map((row, k) => 1 - cosine(row, free[base][k])));
    values.set(arm, [...values.get(arm) ?? [], moved]);
  }
  return Object.fromEntries(
    [...values].map(([arm, list]) => [arm, rounded(mean(list))]),
  );
}

/** ED-LoRA's gain over the class word, or LoRA's where only that was run. */
function headroomOf(
  { embeddings = EMBEDDINGS }: AblationPlan,
  { names, rowsOf }: Table,
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

/** What can be read off the trained concepts of the first seed. */
async function inspect(
  lab: Lab,
  { settings, seeds }: AblationPlan,
  all: readonly Subject[],
  trained: readonly Extract<AblationRecord, { type: "trained" }>[],
): Promise<Pick<AblationReport, "capacity" | "distinguishability">> {
  const { rank } = settings;
  const n = all.length;
  const base = await loadModel(lab.folders.model);
  try {
    const alike: AblationReport["distinguishability"] = {};
    for (const { embedding, seed, singles } of trained) {
      if (seed !== seeds[0]) continue;
      const before: ClipVector[][] = [], after: ClipVector[][] = [];
      for (const [i, { model }] of singles.entries()) {
        const ask = training(settings, all[i], embedding, seed);
        const start = await startConcept(
          base,
          method(ask.method, ask.preset, ask.config),
          {
            name: ask.concept,
            classWord: ask.classWord,
            key: conceptKey(ask.seed, ask.concept),
            rank,
          },
        );
        before.push(await conceptVectors(start));
        const file = pathOf.concept(lab.folders.store, model.id);
        const end = await loadConcept(file, base);
        after.push(await conceptVectors(end));
        disposeConcept(start);
        disposeConcept(end);
      }
      alike[embedding] = {
        before: pairCosines(before),
        after: pairCosines(after),
      };
    }
    return {
      capacity: { rank, n, ...capacityOf(base, n, rank) },
      distinguishability: alike,
    };
  } finally {
    disposeModel(base);
  }
}
