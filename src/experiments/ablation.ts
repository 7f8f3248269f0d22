/**
 * The paper's Table 2 on the embedded model, with the fourth cell: {LoRA,
 * ED-LoRA} × {weight, gradient fusion}, single against fused, and weight fusion
 * at its best λ.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import { loadConcept } from "../formats/concept_file.ts";
import { method, startConcept } from "../customize/methods.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import { cosine, textAlignment } from "../evaluation/clip_score.ts";
import type { GalleryEntry } from "../evaluation/retrieval.ts";
import {
  hierarchicalBootstrap,
  mean,
  median,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import { captionOf } from "../micro/captions.ts";
import {
  loadPrompts,
  type Prompt,
  PROMPT_GROUPS,
  PROMPTS_SHA256,
  promptText,
} from "../micro/prompts.ts";
import { heldOutScene } from "../micro/scenes.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import {
  type AblationReport,
  type Arm,
  finite,
  orNull,
  type ScoreEstimate,
  type ScoreName,
  type ScoreRow,
  SCORES,
  type Scores,
} from "./ablation_schema.ts";
import { compareArms } from "./claims.ts";
import type { StageProgress } from "./crew.ts";
import {
  capacityOf,
  drift,
  type Evidence,
  scoreReferences,
} from "./measure.ts";
import { conceptKey, type ModelRef, store } from "./pieces.ts";
import { type EmbeddingName, EMBEDDINGS } from "./presets.ts";
import {
  addFreePictures,
  addFusion,
  addPictures,
  addTraining,
  chosenPrompts,
  type ConceptJob,
  conceptJobs,
  isFinished,
  oneDomain,
  openStudy,
  phraseOf,
  pictureId,
  rounded,
  runPieces,
  runStudy,
  type SeenCell,
  type Study,
  type StudyOptions,
  type StudyResult,
} from "./study.ts";
import { verdict } from "./verdict.ts";
import { readConceptLog, readFusedLog } from "./workshop.ts";

/** Kinds of fusion that are compared. */
export const FUSIONS: readonly FusionName[] = [
  "weight",
  "gradient",
  "weight_best_lambda",
];

/** A kind of fusion. */
export type FusionName = "weight" | "gradient" | "weight_best_lambda";

/** Least median gain over the lower bound for the result to mean anything. */
export const REQUIRED_HEADROOM = 0.1;

/** Concept-free prompts on which drift is measured. */
export const DRIFT_PROMPTS = 8;

/** What is run. */
export interface AblationOptions extends StudyOptions {
  /** Proper names of identities. */
  readonly concepts: readonly string[];
  /** Prompts of each concept, taken from the four groups in turn. */
  readonly prompts: number;
  /** Training seeds; each also draws its own pictures. */
  readonly seeds: readonly number[];
  /** All seeds that were planned, if these are some of them: no conclusion. */
  readonly planned?: readonly number[];
  /**
   * Which embeddings are compared.
   *
   * @default both
   */
  readonly embeddings?: readonly EmbeddingName[];
  /**
   * Which fusions are compared.
   *
   * @default all three
   */
  readonly fusions?: readonly FusionName[];
  /** For the record. */
  readonly scale: AblationReport["scale"];
  /** Version of the library, for the record. */
  readonly version: string;
  /** For the record. @default now */
  readonly created?: string;
}

/** Concept-free captions of held-out scenes. */
export function driftTexts(count: number): string[] {
  return Array.from(
    { length: count },
    (_, i) => captionOf(heldOutScene(i), i),
  );
}

const nameOf = (...parts: (string | number)[]): string => parts.join("/");

/**
 * Writes the ablation down as a study, without running it.
 *
 * @param options What is run.
 * @throws If an option is wrong.
 */
export async function ablationStudy(
  options: AblationOptions,
): Promise<Study> {
  const { settings, seeds } = options;
  const embeddings = options.embeddings ?? EMBEDDINGS;
  const fusions = options.fusions ?? FUSIONS;
  if (seeds.length === 0) throw cannot("run the ablation", "a seed", "none");
  for (const list of [seeds, embeddings, fusions]) {
    if (new Set<unknown>(list).size !== list.length) {
      throw cannot(
        "run the ablation",
        "each seed, embedding and fusion once",
        list,
      );
    }
  }
  for (const seed of seeds) {
    if (!Number.isSafeInteger(seed)) {
      throw cannot("run the ablation", "whole seeds", seed);
    }
  }
  oneDomain(options.concepts);
  const jobs = conceptJobs(
    options.concepts,
    options.prompts,
    await loadPrompts(),
  );
  const study = await openStudy(options, jobs);
  const texts = driftTexts(Math.min(DRIFT_PROMPTS, options.prompts));
  for (const seed of seeds) {
    const base: ModelRef = { type: "base" };
    for (const job of jobs) {
      addPictures(study, "base", job, seed, base, job.identity.class);
    }
    addFreePictures(study, "base", seed, base, texts);
    for (const embedding of embeddings) {
      const single = `${embedding}.single`;
      const ids: string[] = [];
      for (const job of jobs) {
        const model = await addTraining(study, job, embedding, seed);
        const phrase = phraseOf(settings, embedding, job.identity);
        ids.push(model.id);
        addPictures(study, single, job, seed, model, phrase);
        addFreePictures(study, single, seed, model, texts);
      }
      for (const fusion of fusions) {
        const arm = `${embedding}.${fusion}`;
        const model = await addFusion(
          study,
          arm,
          ids,
          fusion === "gradient"
            ? { type: "gradient", settings: settings.gradient }
            : {
              type: "weight",
              lambda: fusion === "weight"
                ? 1 / jobs.length
                : settings.bestLambda[embedding],
            },
          seed,
        );
        for (const job of jobs) {
          const phrase = phraseOf(settings, embedding, job.identity);
          addPictures(study, arm, job, seed, model, phrase);
        }
        addFreePictures(study, arm, seed, model, texts);
      }
    }
  }
  return study;
}

/**
 * Runs the ablation.
 *
 * Everything that is drawn at random comes from keys, work is cut into pieces
 * whose results are stored under the hash of what shaped them: a killed run
 * continues, and the number of workers changes nothing.
 *
 * @param options What is run.
 * @returns Yields progress; returns the report.
 * @throws Before work starts, if an option is wrong or a model does not load.
 */
export async function* ablation(
  options: AblationOptions,
): AsyncGenerator<StageProgress, AblationReport, void> {
  const study = await ablationStudy(options);
  const { seeds } = options;
  const timings: Record<string, number> = {};
  const count = (own: Record<string, number>) => {
    for (const [stage, seconds] of Object.entries(own)) {
      timings[stage] = (timings[stage] ?? 0) + seconds;
    }
  };
  // Seed by seed, so that a run that stops has something whole to report.
  const before = performance.now();
  for (const seed of seeds.length > 1 ? seeds : []) {
    count(yield* runPieces(await ablationStudy({ ...options, seeds: [seed] })));
  }
  const result = yield* runStudy(study);
  count(result.timings);
  timings.total = (performance.now() - before) / 1000;
  return await report(options, study, { ...result, timings });
}

/**
 * The seeds whose pieces the store has, all of them: what a run that was
 * stopped can be reported on, with {@linkcode AblationOptions.planned}.
 *
 * @param options What was run.
 */
export async function finishedSeeds(
  options: AblationOptions,
): Promise<number[]> {
  const finished: number[] = [];
  for (const seed of options.seeds) {
    const study = await ablationStudy({ ...options, seeds: [seed] });
    if (await isFinished(study)) finished.push(seed);
  }
  return finished;
}

async function report(
  options: AblationOptions,
  study: Study,
  result: StudyResult,
): Promise<AblationReport> {
  const { settings, seeds } = options;
  const embeddings = options.embeddings ?? EMBEDDINGS;
  const fusions = options.fusions ?? FUSIONS;
  const { rows, seen, evidence, entries, timings } = result;
  const rowsOf = (arm: string) => rows.filter((row) => row.arm === arm);
  const means = (arm: string, score: ScoreName): number[] =>
    study.jobs.map(({ identity }) =>
      mean(
        rowsOf(arm).filter((row) => row.concept === identity.name)
          .map((row) => mean(row[score])),
      )
    );
  const driftOf = driftTable(seen);
  const root = fold(key(0), "statistics");
  const arms: Record<string, Arm> = {};
  for (const embedding of embeddings) {
    for (const fusion of fusions) {
      const arm = `${embedding}.${fusion}`;
      const { piece, id } = study.fuses.get(nameOf(arm, seeds[0]))!;
      const log = await readFusedLog(options.cache, id);
      const single = `${embedding}.single`;
      const each = (
        fn: (score: ScoreName) => Parameters<typeof finite>[0],
      ): Scores =>
        Object.fromEntries(
          SCORES.map((score) => [score, finite(fn(score))]),
        ) as Scores;
      arms[arm] = {
        embedding,
        fusion,
        lambda: piece.how.type === "weight" ? piece.how.lambda : null,
        single: estimates(study.jobs, rowsOf(single), single),
        fused: estimates(study.jobs, rowsOf(arm), arm),
        loss: each((score) =>
          pairedDifference(means(single, score), means(arm, score))
        ),
        retained: each((score) =>
          score === "text" ? { mean: NaN, low: NaN, high: NaN } : retainedShare(
            means(arm, score),
            means(single, score),
            means("base", score),
            fold(root, "retained", arm, score),
          )
        ),
        fusionSeconds: log.seconds,
        drift: driftOf[arm] ?? null,
        layers: log.layers.map((layer) => ({
          ...layer,
          before: orNull(layer.before),
          after: orNull(layer.after),
          average: orNull(layer.average),
        })),
      };
    }
  }
  const gains = embeddings.map((embedding) =>
    median(
      means(`${embedding}.single`, "image").map((value, i) =>
        value - means("base", "image")[i]
      ),
    )
  );
  // ED-LoRA's where it was run.
  const gain = gains[Math.max(0, embeddings.indexOf("edlora"))];
  const headroom = {
    median: orNull(gain),
    required: REQUIRED_HEADROOM,
    enough: gain >= REQUIRED_HEADROOM,
  };
  const conclusive = options.scale !== "quick" && study.jobs.length > 1 &&
    headroom.enough && options.planned === undefined;
  const nested = (arm: string, score: ScoreName): number[][][] =>
    study.jobs.map(({ identity }) =>
      rowsOf(arm).filter((row) => row.concept === identity.name)
        .map((row) => row[score])
    );
  const comparisons = compareArms(nested, { embeddings, fusions, conclusive });
  const { capacity, distinguishability } = await inspect(options, study);
  const training: AblationReport["training"] = [];
  for (const [name, { id }] of study.trains) {
    const [embedding, concept, seed] = name.split("/");
    const log = await readConceptLog(options.cache, id);
    training.push({
      embedding,
      concept,
      seed: Number(seed),
      seconds: log.seconds,
      losses: [...log.losses],
    });
  }
  const all = await loadPrompts();
  return {
    format: "mix-of-show ablation 1",
    scale: options.scale,
    created: options.created ?? new Date().toISOString(),
    concepts: study.jobs.map(({ identity }) => ({
      name: identity.name,
      class: identity.class,
    })),
    seeds: [...seeds],
    ...(options.planned ? { planned: [...options.planned] } : {}),
    prompts: {
      perConcept: options.prompts,
      indices: chosenPrompts(options.prompts, all[0].prompts),
      sha256: PROMPTS_SHA256,
    },
    settings: settings as unknown as Record<string, unknown>,
    base: {
      lower: estimates(study.jobs, rowsOf("base"), "base"),
      ceiling: ceiling(study.jobs, evidence, entries),
      unrelated: unrelated(study.jobs, result),
    },
    arms,
    comparisons,
    headroom,
    verdict: verdict({
      scale: options.scale,
      concepts: study.jobs.length,
      seeds,
      ...(options.planned ? { planned: options.planned } : {}),
      headroom,
      comparisons,
      arms,
    }),
    retrieval: {
      chance: 1 / entries.length,
      gallery: entries.map(({ label }) => label),
    },
    capacity,
    distinguishability,
    drift: driftOf,
    rows,
    groups: groupMeans(rows, study.jobs[0].prompts),
    training,
    hashes: { model: study.base, clip: study.clip, data: { ...study.data } },
    machine: {
      backend: options.backend,
      workers: options.workers,
      processors: navigator.hardwareConcurrency,
      deno: Deno.version.deno,
      library: options.version,
      tfjs: "4.22.0",
    },
    timings,
  };
}

/** Means with hierarchical bootstrap: prompts in seeds in concepts. */
function estimates(
  jobs: readonly ConceptJob[],
  rows: readonly ScoreRow[],
  arm: string,
): Scores {
  return Object.fromEntries(SCORES.map((score) => [
    score,
    finite(hierarchicalBootstrap(
      jobs.map(({ identity }) =>
        rows.filter((row) => row.concept === identity.name)
          .map((row) => row[score])
      ),
      fold(key(0), "interval", arm, score),
    )),
  ])) as Scores;
}

/** What the references score among themselves: as good as the real thing. */
function ceiling(
  jobs: readonly ConceptJob[],
  evidence: ReadonlyMap<string, Evidence>,
  entries: readonly GalleryEntry[],
): Scores {
  const own = jobs.map(({ identity: { name } }) =>
    scoreReferences(evidence.get(name)!, entries, name)
  );
  return Object.fromEntries(SCORES.map((score) => [
    score,
    score === "text"
      ? { mean: null, low: null, high: null }
      : finite(hierarchicalBootstrap(
        own.map((rows) => rows.map((row) => row[score])),
        fold(key(0), "ceiling", score),
      )),
  ])) as Scores;
}

/** Text alignment of the base's pictures with captions of other prompts. */
function unrelated(
  jobs: readonly ConceptJob[],
  { seen, captions }: StudyResult,
): ScoreEstimate {
  const values = jobs.map(({ identity: { name } }) =>
    seen.filter((cell) => cell.arm === "base" && cell.concept === name)
      .map(({ pictures }) =>
        pictures.map(({ whole }, i) =>
          mean(
            captions.get(name)!.filter((_, j) => j !== i)
              .map((caption) => textAlignment(whole, caption)),
          )
        )
      )
  );
  return jobs[0].prompts.length < 2
    ? { mean: null, low: null, high: null }
    : finite(hierarchicalBootstrap(values, fold(key(0), "unrelated")));
}

function driftTable(seen: readonly SeenCell[]): Record<string, number> {
  const cells = seen.filter(({ concept }) => concept === "");
  const values = new Map<string, number[]>();
  for (const { arm, seed, pictures } of cells) {
    if (arm === "base") continue;
    const base = cells.find((cell) =>
      cell.arm === "base" && cell.seed === seed
    );
    const moved = drift(
      pictures.map(({ whole }) => whole),
      base!.pictures.map(({ whole }) => whole),
    );
    values.set(arm, [...values.get(arm) ?? [], moved]);
  }
  return Object.fromEntries(
    [...values].map(([arm, list]) => [arm, rounded(mean(list))]),
  );
}

function groupMeans(
  rows: readonly ScoreRow[],
  prompts: readonly Prompt[],
): AblationReport["groups"] {
  const arms = [...new Set(rows.map(({ arm }) => arm))];
  return arms.flatMap((arm) =>
    PROMPT_GROUPS.flatMap((group) => {
      const at = prompts.flatMap((prompt, i) =>
        prompt.group === group ? [i] : []
      );
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

/** What can be read off the trained concepts. */
async function inspect(
  options: AblationOptions,
  study: Study,
): Promise<Pick<AblationReport, "capacity" | "distinguishability">> {
  const model = await loadModel(options.model);
  try {
    const n = study.jobs.length;
    const { rank } = options.settings;
    const distinguishability: AblationReport["distinguishability"] = {};
    for (const embedding of options.embeddings ?? EMBEDDINGS) {
      const before: ClipVector[][] = [], after: ClipVector[][] = [];
      for (const { identity } of study.jobs) {
        const { piece, id } = study.trains.get(
          nameOf(embedding, identity.name, options.seeds[0]),
        )!;
        const start = await startConcept(
          model,
          method(piece.method, piece.preset, piece.config),
          {
            name: piece.concept,
            classWord: piece.classWord,
            key: conceptKey(piece.seed, piece.concept),
            rank: piece.rank,
          },
        );
        before.push(await vectorsOf(start));
        const end = await loadConcept(store.concept(options.cache, id), model);
        after.push(await vectorsOf(end));
        disposeConcept(start);
        disposeConcept(end);
      }
      distinguishability[embedding] = {
        before: pairCosines(before),
        after: pairCosines(after),
      };
    }
    return {
      capacity: {
        rank,
        n,
        ...capacityOf(model, n, rank),
      },
      distinguishability,
    };
  } finally {
    disposeModel(model);
  }
}

/** A concept's vectors, unit length: every token at every site. */
async function vectorsOf(concept: Concept): Promise<ClipVector[]> {
  const rows: ClipVector[] = [];
  for (const { vectors } of concept.tokens) {
    const [n, width] = vectors.shape;
    const values = await vectors.data() as Float32Array;
    for (let i = 0; i < n; i++) {
      const row = values.slice(i * width, (i + 1) * width);
      const norm = Math.hypot(...row);
      rows.push(row.map((value) => value / norm));
    }
  }
  return rows;
}

/** Cosines between pairs of concepts, of vectors in the same place. */
function pairCosines(
  concepts: readonly (readonly ClipVector[])[],
): { mean: number | null; max: number | null } {
  const pairs: number[] = [];
  for (let i = 0; i < concepts.length; i++) {
    for (let j = i + 1; j < concepts.length; j++) {
      pairs.push(
        mean(concepts[i].map((row, k) => cosine(row, concepts[j][k]))),
      );
    }
  }
  return pairs.length === 0
    ? { mean: null, max: null }
    : { mean: rounded(mean(pairs)), max: rounded(Math.max(...pairs)) };
}

/**
 * Pictures for a report: for some prompts of each concept the same noise in
 * every arm.
 *
 * @param options What was run.
 * @param perConcept How many prompts of each concept, from different groups.
 * @returns Names of pictures in the store by concept, prompt and arm; of an
 * in-domain concept, that of a reference, too.
 */
export async function ablationPictures(
  options: AblationOptions,
  perConcept = 2,
): Promise<
  {
    concept: string;
    text: string;
    pictures: { arm: string; id: string }[];
    reference?: string;
  }[]
> {
  const study = await ablationStudy(options);
  const seed = options.seeds[0];
  const result: {
    concept: string;
    text: string;
    pictures: { arm: string; id: string }[];
    reference?: string;
  }[] = [];
  for (const { identity, prompts } of study.jobs) {
    const step = Math.max(1, Math.floor(prompts.length / perConcept));
    const reference = study.drawn.get(identity.name)?.reference[0].image;
    for (let i = 0; i < prompts.length && i / step < perConcept; i += step) {
      const pictures: { arm: string; id: string }[] = [];
      for (const cell of study.cells) {
        if (cell.concept !== identity.name || cell.seed !== seed) continue;
        pictures.push({ arm: cell.arm, id: await pictureId(cell, i) });
      }
      result.push({
        concept: identity.name,
        text: promptText(prompts[i], identity.name),
        pictures,
        ...(reference === undefined ? {} : { reference }),
      });
    }
  }
  return result;
}
