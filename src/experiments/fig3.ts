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
import { finite, rounded, verdictOf } from "../evaluation/compare.ts";
import {
  mean,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import { IN_DOMAIN, inDomain } from "../micro/in_domain.ts";
import { PROMPTS_SHA256 } from "../micro/prompts.ts";
import type { Report } from "../report/document.ts";
import { decimal, type Interval, interval } from "../report/format.ts";
import type { Sheet } from "../report/grid.ts";
import { type Table, tableOf } from "../report/table.ts";
import { type PictureRow, pictureRows } from "./pictures.ts";
import type { ExperimentPreset } from "./presets.ts";
import {
  type ArmScores,
  type Cell,
  conceptMeans,
  perScore,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
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
  /** Whether a verdict may be given. @default true */
  readonly conclusive?: boolean;
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
  /** Masked denoising error on held-out references; null of the references. */
  readonly heldout: number | null;
  /** Image alignment above the class word's, paired by concept, t interval. */
  readonly gain: Interval;
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
  readonly share: Interval;
}

/** What comes out. */
export interface DomainReport {
  /** A row per arm and domain. */
  readonly rows: readonly DomainRow[];
  /** What embeddings hold. */
  readonly shares: readonly EmbeddingShare[];
  /** Whether verdicts are given. */
  readonly conclusive: boolean;
  /** Training seeds. */
  readonly seeds: readonly number[];
  /** How many prompts of each concept, and the hash of all. */
  readonly prompts: { readonly perConcept: number; readonly sha256: string };
  /** SHA-256 of base model and evaluation CLIP. */
  readonly hashes: { readonly model: string; readonly clip: string };
}

type Arm = Pick<DomainRow, "domain" | "method" | "alpha" | "fusion">;

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

/** Trains and fuses one domain: each concept in each arm. */
async function cellsOf(
  lab: Lab,
  plan: DomainPlan,
  domain: Domain,
  own: readonly Subject[],
): Promise<Cell<Arm>[]> {
  const { settings, methods = DOMAIN_METHODS, alphas = [0, 0.7, 1] } = plan;
  const plain = { domain, alpha: null, fusion: "none" } as const;
  const base = { type: "base" } as const;
  const cells: Cell<Arm>[] = [];
  for (const seed of plan.seeds) {
    for (const subject of own) {
      const untouched = (method: "class" | "words", words: string) =>
        cells.push({
          arm: { ...plain, method },
          ...{ seed, subject, model: base, words },
        });
      untouched("class", subject.class);
      const look = inDomain(subject.name)?.look;
      if (look !== undefined) untouched("words", look);
    }
    for (const method of methods) {
      const hasAdapter = method === "lora" || method === "ed-lora";
      const change = changeOf(plan, method);
      const singles = await lab.train(
        own.map((one) => training(settings, one, method, seed, change)),
      );
      for (const [i, { model, phrase: words }] of singles.entries()) {
        for (const alpha of hasAdapter ? alphas : [null]) {
          cells.push({
            arm: { ...plain, method, alpha },
            ...{ seed, subject: own[i], words },
            // α = 1 is left unsaid, so that pictures are shared.
            model: alpha === null || alpha === 1 ? model : { ...model, alpha },
          });
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
      cells.push(...own.map((subject, i): Cell<Arm> => ({
        arm: { domain, method, alpha: 1, fusion },
        ...{ seed, subject, model, words: singles[i].phrase },
      })));
    }
  }
  return cells;
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
): Promise<{ report: DomainReport; pictures: PictureRow[] }> {
  const { settings, seeds, prompts } = plan;
  checkSettings(settings, seeds);
  const concepts = conceptsOf(plan);
  const { sampling } = settings;
  const own = {
    in: await subjects(lab, concepts.in, prompts, sampling),
    out: await subjects(lab, concepts.out, prompts, sampling),
  };
  const cells = [
    ...await cellsOf(lab, plan, "in", own.in),
    ...await cellsOf(lab, plan, "out", own.out),
  ];
  const all = [...own.in, ...own.out];
  const { arms, drawn, scorer } = await scoreCells(lab, settings, all, cells);
  const rows: DomainRow[] = [];
  const shares: EmbeddingShare[] = [];
  for (const domain of DOMAINS) {
    const names = concepts[domain];
    const inside = arms.filter(({ arm }) => arm.domain === domain);
    const values = (found: ArmScores<Arm>) => (score: ScoreName | "heldout") =>
      conceptMeans(found.rows, names, score);
    const lower = values(inside[0])("image");
    const references = { domain, method: "references", alpha: null } as const;
    rows.push(
      ...inside.map((one) => rowOf(one.arm, names, lower, values(one))),
      rowOf(
        { ...references, fusion: "none" },
        names,
        lower,
        (score) =>
          score === "text" || score === "heldout"
            ? []
            : own[domain].map((subject) =>
              mean(scorer.ceiling(subject).map((one) => one[score]))
            ),
      ),
    );
    for (const { arm: { method, alpha, fusion }, ...one } of inside) {
      const whole = inside.find(({ arm }) =>
        arm.method === method && arm.alpha === 1 && arm.fusion === "none"
      );
      if (alpha !== 0 || fusion !== "none" || !whole) continue;
      const share = finite(retainedShare(
        conceptMeans(one.rows, names, "image"),
        values(whole)("image"),
        lower,
        fold(key(0), "embedding share", domain, method),
      ));
      shares.push({ domain, method: method as DomainMethod, share });
    }
  }
  return {
    report: {
      rows,
      shares,
      conclusive: plan.conclusive ?? true,
      seeds: [...seeds],
      prompts: { perConcept: prompts, sha256: PROMPTS_SHA256 },
      hashes: { model: lab.hashes.model, clip: lab.hashes.clip },
    },
    pictures: pictureRows(drawn, domainLabel, 1),
  };
}

/** Means of an arm; of a score without values, none. */
function rowOf(
  arm: Arm,
  names: readonly string[],
  lower: readonly number[],
  values: (score: ScoreName | "heldout") => readonly number[],
): DomainRow {
  const image = values("image");
  const average = (score: ScoreName | "heldout") =>
    values(score).length === 0 ? null : rounded(mean(values(score)));
  return {
    ...arm,
    ...perScore(average),
    heldout: average("heldout"),
    gain: arm.method === "class"
      ? { mean: null, low: null, high: null }
      : finite(pairedDifference(image, lower)),
    concepts: Object.fromEntries(
      names.map((name, i) => [name, rounded(image[i])]),
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

/**
 * The rows as a table.
 *
 * @param report The report.
 */
export function domainTable(
  { rows, conclusive }: Pick<DomainReport, "rows" | "conclusive">,
): Table {
  return tableOf(rows, [
    ["domain", ({ domain }) => domain],
    ["", domainLabel],
    ["held-out", ({ heldout }) => decimal(heldout)],
    ["text", ({ text }) => decimal(text)],
    ["image", ({ image }) => decimal(image)],
    ["masked image", ({ masked }) => decimal(masked)],
    ["retrieval", ({ retrieval }) => decimal(retrieval)],
    ["image above the class word", ({ gain }) => interval(gain)],
    [
      "verdict",
      ({ gain, method }) =>
        gain.mean === null || method === "references"
          ? ""
          : verdictOf(gain, { paper: false }, conclusive),
    ],
  ]);
}

/**
 * How much of a concept its embedding alone holds, as a table.
 *
 * @param report The report.
 */
export function shareTable({ shares }: Pick<DomainReport, "shares">): Table {
  return tableOf(shares, [
    ["domain", ({ domain }) => domain],
    ["method", ({ method }) => LABELS[method]],
    ["share of the gain at α = 0", ({ share }) => interval(share)],
  ]);
}

/**
 * The whole report.
 *
 * @param report The numbers.
 * @param sheet Pictures of the same noise, an arm per column.
 */
export function domainReport(report: DomainReport, sheet: Sheet): Report {
  return {
    name: "domain",
    title: "in-domain and out-domain concepts",
    lead: report.conclusive ? [] : ["No conclusion: mechanics only."],
    parts: [
      { type: "table", table: domainTable(report), brief: true },
      {
        type: "table",
        title: "Share of a concept's gain that its embedding alone has",
        table: shareTable(report),
        brief: true,
      },
      {
        type: "pictures",
        name: "domain",
        title: "Same noise in every column",
        sheet,
      },
    ],
  };
}
