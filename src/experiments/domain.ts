/**
 * The paper's Figure 3 on the embedded model: what embeddings alone can hold,
 * and what needs the weights, for concepts that the base model can draw itself
 * (in-domain) and for ones that it cannot (out-domain).
 *
 * Textual inversion and P+ have embeddings only; LoRA and ED-LoRA are drawn
 * with their adapter at several strengths α, 0 being the embedding alone. Each
 * in-domain concept has a twin among the identities with the same class word
 * and the same prompts. Both domains are fused, each by itself: LoRA by weight
 * and ED-LoRA by gradient, the paper's (e) and (f).
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import type { MethodName } from "../customize/methods.ts";
import type { TrainConfig } from "../customize/train.ts";
import {
  mean,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import { IN_DOMAIN, inDomain } from "../micro/in_domain.ts";
import { loadPrompts, PROMPTS_SHA256, promptText } from "../micro/prompts.ts";
import {
  finite,
  type ScoreEstimate,
  type ScoreName,
  type ScoreRow,
  SCORES,
} from "./ablation_schema.ts";
import type { TextTable } from "./ablation_figures.ts";
import type { StageProgress } from "./crew.ts";
import { scoreReferences } from "./measure.ts";
import type { ModelRef } from "./pieces.ts";
import {
  addFusion,
  addPictures,
  addTraining,
  type ConceptJob,
  conceptJobs,
  openStudy,
  phraseOf,
  pictureId,
  rounded,
  runStudy,
  type Study,
  type StudyOptions,
} from "./study.ts";

/** Whether the base model can draw a concept itself. */
export type Domain = "in" | "out";

/** The methods of the figure. */
export type DomainMethod = "textual-inversion" | "p+" | "lora" | "ed-lora";

/** All of them, in the order of the figure. */
export const DOMAIN_METHODS: readonly DomainMethod[] = [
  "textual-inversion",
  "p+",
  "lora",
  "ed-lora",
];

/** What is run. */
export interface DomainOptions extends StudyOptions {
  /** In-domain concepts. @default all */
  readonly inDomain?: readonly string[];
  /** Identities. @default the twins of the in-domain concepts */
  readonly outDomain?: readonly string[];
  /** Prompts of each. */
  readonly prompts: number;
  /** Training seeds. */
  readonly seeds: readonly number[];
  /** Which methods. @default all */
  readonly methods?: readonly DomainMethod[];
  /** Strengths of adapters. @default 0, 0.7, 1 */
  readonly alphas?: readonly number[];
  /**
   * Learning rate of methods that have embeddings only: a rate that is right
   * beside an adapter leaves them where they started.
   *
   * @default 5e-3
   */
  readonly embeddingRate?: number;
  /** Learning rate of the embedding beside an adapter. @default the preset's */
  readonly adapterEmbeddingRate?: number;
  /** Whether each domain's concepts are fused. @default true */
  readonly fuse?: boolean;
}

/** One arm in one domain: means over concepts, seeds and prompts. */
export interface DomainRow extends Readonly<Record<ScoreName, number | null>> {
  /** Which of the two. */
  readonly domain: Domain;
  /**
   * A method; `class` is the untouched base with the class word, `words` the
   * untouched base told the look in words, `references` the references
   * themselves.
   */
  readonly method: DomainMethod | "class" | "words" | "references";
  /** Strength of the adapter; null where there is none. */
  readonly alpha: number | null;
  /** How the domain's concepts were put into one model, if they were. */
  readonly fusion: "none" | "weight" | "gradient";
  /** Image alignment above the class word's, paired by concept, t interval. */
  readonly gain: ScoreEstimate;
  /** Image alignment of each concept. */
  readonly concepts: Readonly<Record<string, number>>;
}

/** How much of a whole concept's gain its embedding alone has. */
export interface EmbeddingShare {
  /** Which of the two. */
  readonly domain: Domain;
  /** How the concepts were trained. */
  readonly method: DomainMethod;
  /** (α = 0 − lower) / (α = 1 − lower) of image alignment. */
  readonly share: ScoreEstimate;
}

/** What comes out. */
export interface DomainReport {
  /** A row an arm and domain. */
  readonly rows: readonly DomainRow[];
  /** What embeddings hold. */
  readonly shares: readonly EmbeddingShare[];
  /** Training seeds. */
  readonly seeds: readonly number[];
  /** How many prompts of each concept, and the hash of all. */
  readonly prompts: { readonly perConcept: number; readonly sha256: string };
  /** SHA-256 of base model and evaluation CLIP. */
  readonly hashes: { readonly model: string; readonly clip: string };
}

type Arm = Pick<DomainRow, "domain" | "method" | "alpha" | "fusion">;

interface Plan {
  readonly study: Study;
  readonly arms: ReadonlyMap<string, Arm>;
  readonly jobs: Readonly<Record<Domain, readonly ConceptJob[]>>;
}

/** An arm as a name in a study. */
function armName({ domain, method, alpha, fusion }: Arm): string {
  return JSON.stringify([domain, method, alpha, fusion]);
}

const DOMAINS: readonly Domain[] = ["in", "out"];

/** What is changed in a method's training. */
function changes(
  options: DomainOptions,
  name: MethodName,
): Partial<TrainConfig> {
  const { embeddingRate = 5e-3, adapterEmbeddingRate } = options;
  if (name === "textual-inversion" || name === "p+") {
    return { lr: { embedding: embeddingRate, textEncoder: 0, unet: 0 } };
  }
  const { lr } = options.settings.train;
  return lr && adapterEmbeddingRate !== undefined
    ? { lr: { ...lr, embedding: adapterEmbeddingRate } }
    : {};
}

/** Writes the experiment down. */
async function plan(options: DomainOptions): Promise<Plan> {
  const {
    settings,
    seeds,
    methods = DOMAIN_METHODS,
    alphas = [0, 0.7, 1],
    fuse = true,
  } = options;
  const inside = options.inDomain ?? IN_DOMAIN.map(({ name }) => name);
  const outside = options.outDomain ??
    inside.map((name) => inDomain(name)?.twin ?? name);
  for (const [names, wanted] of [[inside, true], [outside, false]] as const) {
    const wrong = names.find((name) =>
      (inDomain(name) !== undefined) !== wanted
    );
    if (wrong === undefined) continue;
    throw cannot(
      "compare domains",
      wanted
        ? `in-domain concepts of ${
          IN_DOMAIN.map(({ name }) => name).join(", ")
        }`
        : "identities as out-domain concepts",
      wrong,
    );
  }
  for (const alpha of alphas) {
    if (!Number.isFinite(alpha)) {
      throw cannot("compare domains", "finite strengths", alpha);
    }
  }
  const all = await loadPrompts();
  const jobs = {
    in: conceptJobs(inside, options.prompts, all),
    out: conceptJobs(outside, options.prompts, all),
  };
  const study = await openStudy(options, [...jobs.in, ...jobs.out]);
  const arms = new Map<string, Arm>();
  const arm = (what: Arm): string => {
    const name = armName(what);
    arms.set(name, what);
    return name;
  };
  const base: ModelRef = { type: "base" };
  for (const seed of seeds) {
    for (const domain of DOMAINS) {
      const plain = { domain, alpha: null, fusion: "none" } as const;
      for (const job of jobs[domain]) {
        const { name, class: word } = job.identity;
        const lower = arm({ ...plain, method: "class" });
        addPictures(study, lower, job, seed, base, word);
        const look = inDomain(name)?.look;
        if (look === undefined) continue;
        const words = arm({ ...plain, method: "words" });
        addPictures(study, words, job, seed, base, look);
      }
      for (const method of methods) {
        const hasAdapter = method === "lora" || method === "ed-lora";
        const phrase = (job: ConceptJob) =>
          phraseOf(settings, method, job.identity);
        const ids: string[] = [];
        for (const job of jobs[domain]) {
          const model = await addTraining(
            study,
            job,
            method,
            seed,
            changes(options, method),
          );
          ids.push(model.id);
          for (const alpha of hasAdapter ? alphas : [null]) {
            addPictures(
              study,
              arm({ ...plain, method, alpha }),
              job,
              seed,
              // α = 1 is left unsaid, so that pictures are shared.
              alpha === null || alpha === 1
                ? model
                : { type: "concept", id: model.id, alpha },
              phrase(job),
            );
          }
        }
        if (!fuse || !hasAdapter || ids.length < 2) continue;
        const fusion = method === "lora" ? "weight" : "gradient";
        const name = arm({ domain, method, alpha: 1, fusion });
        const fused = await addFusion(
          study,
          name,
          ids,
          fusion === "weight"
            ? { type: "weight", lambda: 1 / ids.length }
            : { type: "gradient", settings: settings.gradient },
          seed,
        );
        for (const job of jobs[domain]) {
          addPictures(study, name, job, seed, fused, phrase(job));
        }
      }
    }
  }
  return { study, arms, jobs };
}

/**
 * Runs the experiment.
 *
 * @param options What is run.
 * @returns Yields progress; returns rows and shares.
 * @throws Before work starts, if an option is wrong.
 */
export async function* domains(
  options: DomainOptions,
): AsyncGenerator<StageProgress, DomainReport, void> {
  const { study, arms, jobs } = await plan(options);
  const { rows, evidence, entries } = yield* runStudy(study);
  const names = (domain: Domain) =>
    jobs[domain].map(({ identity }) => identity.name);
  const own = (arm: string) => rows.filter((row) => row.arm === arm);
  const values = (what: Arm, score: ScoreName): number[] =>
    conceptMeans(own(armName(what)), names(what.domain), score);
  const lower = (domain: Domain) =>
    values({ domain, method: "class", alpha: null, fusion: "none" }, "image");
  const result: DomainRow[] = [...arms.values()].map((what) => {
    const image = values(what, "image");
    return {
      ...what,
      ...scoresOf((score) => rounded(mean(values(what, score)))),
      gain: what.method === "class"
        ? { mean: null, low: null, high: null }
        : finite(pairedDifference(image, lower(what.domain))),
      concepts: byName(names(what.domain), image),
    };
  });
  for (const domain of DOMAINS) {
    const scores = names(domain).map((name) =>
      scoreReferences(evidence.get(name)!, entries, name)
    );
    const of = (score: Exclude<ScoreName, "text">) =>
      scores.map((list) => mean(list.map((one) => one[score])));
    result.push({
      domain,
      method: "references",
      alpha: null,
      fusion: "none",
      ...scoresOf((score) =>
        score === "text" ? null : rounded(mean(of(score)))
      ),
      gain: finite(pairedDifference(of("image"), lower(domain))),
      concepts: byName(names(domain), of("image")),
    });
  }
  return {
    rows: inOrder(result),
    shares: shares(arms, values, lower),
    seeds: [...options.seeds],
    prompts: { perConcept: options.prompts, sha256: PROMPTS_SHA256 },
    hashes: { model: study.base, clip: study.clip },
  };
}

function shares(
  arms: ReadonlyMap<string, Arm>,
  values: (arm: Arm, score: ScoreName) => number[],
  lower: (domain: Domain) => number[],
): EmbeddingShare[] {
  const result: EmbeddingShare[] = [];
  for (const what of arms.values()) {
    const { domain, method, alpha, fusion } = what;
    if (method !== "lora" && method !== "ed-lora") continue;
    if (alpha !== 0 || fusion !== "none") continue;
    const whole: Arm = { ...what, alpha: 1 };
    if (!arms.has(armName(whole))) continue;
    result.push({
      domain,
      method,
      share: finite(retainedShare(
        values(what, "image"),
        values(whole, "image"),
        lower(domain),
        fold(key(0), "embedding share", domain, method),
      )),
    });
  }
  return result;
}

/** The domains one after the other; the class word first, references last. */
function inOrder(rows: readonly DomainRow[]): DomainRow[] {
  return DOMAINS.flatMap((domain) =>
    rows.filter((row) => row.domain === domain)
  );
}

function conceptMeans(
  rows: readonly ScoreRow[],
  names: readonly string[],
  score: ScoreName,
): number[] {
  return names.map((name) =>
    mean(
      rows.filter((row) => row.concept === name).map((row) => mean(row[score])),
    )
  );
}

function scoresOf<T>(of: (score: ScoreName) => T): Record<ScoreName, T> {
  return Object.fromEntries(
    SCORES.map((score) => [score, of(score)]),
  ) as Record<ScoreName, T>;
}

function byName(
  names: readonly string[],
  values: readonly number[],
): Record<string, number> {
  return Object.fromEntries(names.map((name, i) => [name, rounded(values[i])]));
}

const LABELS: Readonly<Record<DomainRow["method"], string>> = {
  class: "class word, base model",
  words: "the look in words, base model",
  "textual-inversion": "Textual Inversion",
  "p+": "P+",
  lora: "LoRA",
  "ed-lora": "ED-LoRA",
  references: "references themselves",
};

/**
 * What an arm is called.
 *
 * @param arm Method, strength and fusion.
 */
export function domainLabel(
  { method, alpha, fusion }: Pick<DomainRow, "method" | "alpha" | "fusion">,
): string {
  if (fusion !== "none") return `${LABELS[method]}, ${fusion} fusion`;
  return alpha === null ? LABELS[method] : `${LABELS[method]}, α = ${alpha}`;
}

function text(value: number | null): string {
  return value === null ? "–" : value.toFixed(3).replace("-", "−");
}

/** A number with its interval, where it has one. */
function interval({ mean, low, high }: ScoreEstimate): string {
  if (mean === null) return "";
  return low === null || high === null
    ? text(mean)
    : `${text(mean)} (${text(low)} to ${text(high)})`;
}

/**
 * The rows as a table.
 *
 * @param report The report.
 */
export function domainTable(report: DomainReport): TextTable {
  return {
    head: [
      "domain",
      "",
      "text",
      "image",
      "masked image",
      "retrieval",
      "image above the class word",
    ],
    rows: report.rows.map((row) => [
      row.domain,
      domainLabel(row),
      text(row.text),
      text(row.image),
      text(row.masked),
      text(row.retrieval),
      interval(row.gain),
    ]),
  };
}

/**
 * How much of a concept its embedding alone holds, as a table.
 *
 * @param report The report.
 */
export function shareTable(report: DomainReport): TextTable {
  return {
    head: ["domain", "method", "share of the gain at α = 0"],
    rows: report.shares.map(({ domain, method, share }) => [
      domain,
      LABELS[method],
      interval(share),
    ]),
  };
}

/** Pictures of one concept and prompt, the same noise in every arm. */
export interface DomainPictures {
  /** Proper name. */
  readonly concept: string;
  /** Which of the two. */
  readonly domain: Domain;
  /** The prompt, with the name. */
  readonly text: string;
  /** Name in the store of a reference; absent: an identity's is rendered. */
  readonly reference?: string;
  /** Names in the store by `domainLabel`. */
  readonly pictures: ReadonlyMap<string, string>;
}

/**
 * Pictures for a grid: a prompt of each concept.
 *
 * @param options What was run.
 * @param prompt Which of its prompts.
 * @default prompt 0
 */
export async function domainPictures(
  options: DomainOptions,
  prompt = 0,
): Promise<DomainPictures[]> {
  const { study, arms, jobs } = await plan(options);
  const result: DomainPictures[] = [];
  for (const domain of DOMAINS) {
    for (const { identity: { name }, prompts } of jobs[domain]) {
      const pictures = new Map<string, string>();
      for (const cell of study.cells) {
        if (cell.concept !== name || cell.seed !== options.seeds[0]) continue;
        const label = domainLabel(arms.get(cell.arm)!);
        pictures.set(label, await pictureId(cell, prompt));
      }
      const reference = study.drawn.get(name)?.reference[0].image;
      result.push({
        concept: name,
        domain,
        text: promptText(prompts[prompt], name),
        ...(reference === undefined ? {} : { reference }),
        pictures,
      });
    }
  }
  return result;
}
