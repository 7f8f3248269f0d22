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
import type { TrainConfig } from "../customize/train.ts";
import {
  mean,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import { IN_DOMAIN, inDomain } from "../micro/in_domain.ts";
import { PROMPTS_SHA256, promptText } from "../micro/prompts.ts";
import {
  finite,
  type ScoreEstimate,
  type ScoreName,
} from "./ablation_schema.ts";
import type { ExperimentPreset } from "./presets.ts";
import {
  type Cell,
  conceptMeans,
  drawCells,
  type Drawn,
  openScorer,
  perScore,
  rounded,
} from "./scorer.ts";
import { checkSettings, type Subject, subjects, training } from "./subjects.ts";

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

const DOMAINS: readonly Domain[] = ["in", "out"];

/** What is run. */
export interface DomainPlan {
  /** How concepts are trained, fused and drawn. */
  readonly settings: ExperimentPreset;
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

/** An arm as a name. */
function nameOf({ domain, method, alpha, fusion }: Arm): string {
  return JSON.stringify([domain, method, alpha, fusion]);
}

/** The concepts of both domains. */
function conceptsOf(plan: DomainPlan): Record<Domain, readonly string[]> {
  const inside = plan.inDomain ?? IN_DOMAIN.map(({ name }) => name);
  const outside = plan.outDomain ??
    inside.map((name) => inDomain(name)?.twin ?? name);
  const stranger = inside.find((name) => inDomain(name) === undefined);
  if (stranger !== undefined) {
    const all = IN_DOMAIN.map(({ name }) => name).join(", ");
    throw cannot("compare domains", `in-domain concepts of ${all}`, stranger);
  }
  const insider = outside.find((name) => inDomain(name) !== undefined);
  if (insider !== undefined) {
    const wanted = "identities as out-domain concepts";
    throw cannot("compare domains", wanted, insider);
  }
  const odd = plan.alphas?.find((alpha) => !Number.isFinite(alpha));
  if (odd !== undefined) {
    throw cannot("compare domains", "finite strengths", odd);
  }
  return { in: inside, out: outside };
}

/** What is changed in a method's training. */
function changeOf(
  { embeddingRate = 5e-3, adapterEmbeddingRate, settings }: DomainPlan,
  method: DomainMethod,
): Partial<TrainConfig> {
  if (method === "textual-inversion" || method === "p+") {
    return { lr: { embedding: embeddingRate, textEncoder: 0, unet: 0 } };
  }
  const { lr } = settings.train;
  return lr && adapterEmbeddingRate !== undefined
    ? { lr: { ...lr, embedding: adapterEmbeddingRate } }
    : {};
}

/** Trains and fuses one domain: who is to be drawn by which model. */
async function* cellsOf(
  lab: Lab,
  plan: DomainPlan,
  domain: Domain,
  own: readonly Subject[],
): AsyncGenerator<[Arm, Omit<Cell, "arm">], void, void> {
  const { settings, methods = DOMAIN_METHODS, alphas = [0, 0.7, 1] } = plan;
  const plain = { domain, alpha: null, fusion: "none" } as const;
  for (const seed of plan.seeds) {
    const model = { type: "base" } as const;
    for (const subject of own) {
      const words = subject.class, look = inDomain(subject.name)?.look;
      yield [{ ...plain, method: "class" }, { seed, subject, model, words }];
      if (look === undefined) continue;
      const told = { seed, subject, model, words: look };
      yield [{ ...plain, method: "words" }, told];
    }
    for (const method of methods) {
      const hasAdapter = method === "lora" || method === "ed-lora";
      const change = changeOf(plan, method);
      const singles = await lab.train(
        own.map((one) => training(settings, one, method, seed, change)),
      );
      for (const [i, { model, phrase: words }] of singles.entries()) {
        const subject = own[i];
        for (const alpha of hasAdapter ? alphas : [null]) {
          // α = 1 is left unsaid, so that pictures are shared.
          const strong = alpha === null || alpha === 1
            ? model
            : { ...model, alpha };
          yield [
            { ...plain, method, alpha },
            { seed, subject, model: strong, words },
          ];
        }
      }
      if (!(plan.fuse ?? true) || !hasAdapter || own.length < 2) continue;
      const fusion = method === "lora" ? "weight" : "gradient";
      const [{ model }] = await lab.fuse([{
        concepts: singles.map(({ model }) => model.id),
        how: fusion === "weight"
          ? { type: "weight", lambda: 1 / own.length }
          : { type: "gradient", settings: settings.gradient },
        seed,
      }]);
      for (const [i, subject] of own.entries()) {
        const words = singles[i].phrase;
        yield [
          { domain, method, alpha: 1, fusion },
          { seed, subject, model, words },
        ];
      }
    }
  }
}

/**
 * Runs the experiment.
 *
 * @param lab The lab.
 * @param plan What is run.
 * @returns Rows and shares, and the pictures of the first prompts.
 * @throws Before work starts, if an option is wrong.
 */
export async function fig3(
  lab: Lab,
  plan: DomainPlan,
): Promise<{ report: DomainReport; pictures: DomainPictures[] }> {
  const { settings, seeds, prompts } = plan;
  checkSettings(settings, seeds);
  const concepts = conceptsOf(plan);
  const { sampling } = settings;
  const own = {
    in: await subjects(lab, concepts.in, prompts, sampling),
    out: await subjects(lab, concepts.out, prompts, sampling),
  };
  const arms = new Map<string, Arm>();
  const cells: Cell[] = [];
  for (const domain of DOMAINS) {
    for await (const [arm, cell] of cellsOf(lab, plan, domain, own[domain])) {
      arms.set(nameOf(arm), arm);
      cells.push({ ...cell, arm: nameOf(arm) });
    }
  }
  const drawn = await drawCells(lab, sampling, cells);
  const all = [...own.in, ...own.out];
  const scorer = await openScorer(lab, all, settings.textPrefix);
  const scores = await scorer.score(drawn);
  const values = (arm: Arm, score: ScoreName) =>
    conceptMeans(
      scores.filter((row) => row.arm === nameOf(arm)),
      concepts[arm.domain],
      score,
    );
  const lower = (domain: Domain) =>
    values({ domain, method: "class", alpha: null, fusion: "none" }, "image");
  const rows: DomainRow[] = DOMAINS.flatMap((domain) => [
    ...[...arms.values()].filter((arm) => arm.domain === domain)
      .map((arm) =>
        rowOf(
          arm,
          concepts[domain],
          lower(domain),
          (score) => values(arm, score),
        )
      ),
    rowOf(
      { domain, method: "references", alpha: null, fusion: "none" },
      concepts[domain],
      lower(domain),
      (score) =>
        score === "text"
          ? []
          : own[domain].map((subject) =>
            mean(scorer.ceiling(subject).map((one) => one[score]))
          ),
    ),
  ]);
  return {
    report: {
      rows,
      shares: shares([...arms.values()], values, lower),
      seeds: [...seeds],
      prompts: { perConcept: prompts, sha256: PROMPTS_SHA256 },
      hashes: { model: lab.hashes.model, clip: lab.hashes.clip },
    },
    pictures: DOMAINS.flatMap((domain) =>
      own[domain].map((subject) => picturesOf(domain, subject, drawn, arms))
    ),
  };
}

/** Means of an arm; of a score without values, none. */
function rowOf(
  arm: Arm,
  names: readonly string[],
  lower: readonly number[],
  values: (score: ScoreName) => readonly number[],
): DomainRow {
  const image = values("image");
  return {
    ...arm,
    ...perScore((score) =>
      values(score).length === 0 ? null : rounded(mean(values(score)))
    ),
    gain: arm.method === "class"
      ? { mean: null, low: null, high: null }
      : finite(pairedDifference(image, lower)),
    concepts: Object.fromEntries(
      names.map((name, i) => [name, rounded(image[i])]),
    ),
  };
}

/** What embeddings alone hold, of the methods that have adapters. */
function shares(
  arms: readonly Arm[],
  values: (arm: Arm, score: ScoreName) => number[],
  lower: (domain: Domain) => number[],
): EmbeddingShare[] {
  return arms.flatMap((arm) => {
    const { domain, method, alpha, fusion } = arm;
    if (method !== "lora" && method !== "ed-lora") return [];
    const whole = arms.find((one) =>
      nameOf(one) === nameOf({ ...arm, alpha: 1 })
    );
    if (alpha !== 0 || fusion !== "none" || !whole) return [];
    const share = finite(retainedShare(
      values(arm, "image"),
      values(whole, "image"),
      lower(domain),
      fold(key(0), "embedding share", domain, method),
    ));
    return [{ domain, method, share }];
  });
}

/** Pictures of one concept's first prompt, the same noise in every arm. */
export interface DomainPictures {
  /** Which of the two. */
  readonly domain: Domain;
  /** The concept. */
  readonly subject: Subject;
  /** The prompt, with the name. */
  readonly text: string;
  /** Names in the store by `domainLabel`. */
  readonly images: ReadonlyMap<string, string>;
}

function picturesOf(
  domain: Domain,
  subject: Subject,
  drawn: readonly Drawn[],
  arms: ReadonlyMap<string, Arm>,
): DomainPictures {
  const own = drawn.filter((one) =>
    one.subject === subject && one.seed === drawn[0].seed
  );
  return {
    domain,
    subject,
    text: promptText(subject.prompts[0], subject.name),
    images: new Map(
      own.map(({ arm, images }) => [domainLabel(arms.get(arm)!), images[0]]),
    ),
  };
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
