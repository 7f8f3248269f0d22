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
import {
  flag,
  listOf,
  number,
  oneOf,
  optionName,
  optionTable,
  parsed,
} from "../core/options.ts";
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
import { type Report, type ReportPart, tablePart } from "../report/document.ts";
import { decimal, type Interval, interval } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import { conceptPictures } from "./pictures.ts";
import { RUN_OPTIONS } from "./presets.ts";
import {
  armCells,
  type ArmScores,
  type Cell,
  conceptMeans,
  perScore,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
import { IDENTITY, type Subject, subjects, training } from "./subjects.ts";

/** Whether the base model can draw a concept itself. */
export type Domain = "in" | "out";

/** The methods of the figure. */
export type DomainMethod = "textual-inversion" | "p+" | "lora" | "ed-lora";

/** All of them, in the order of the figure. */
const DOMAIN_METHODS: readonly DomainMethod[] = [
  "textual-inversion",
  "p+",
  "lora",
  "ed-lora",
];

const DOMAINS: readonly Domain[] = ["in", "out"];

const OPTIONS = optionTable({
  inDomain: {
    name: "concepts",
    type: listOf(parsed("NAME", (what, option, found) => {
      if (inDomain(found)) return found;
      const all = IN_DOMAIN.map(({ name }) => name).join(", ");
      throw cannot(what, `${option} ${all}`, found);
    })),
    default: IN_DOMAIN.map(({ name }) => name),
    help: "in-domain concepts",
  },
  outDomain: {
    type: listOf(IDENTITY),
    otherwise: "identities that correspond to them",
    help: "identities",
  },
  prompts: RUN_OPTIONS.prompts,
  seeds: RUN_OPTIONS.seeds,
  methods: {
    name: "method",
    type: listOf(oneOf(DOMAIN_METHODS)),
    default: DOMAIN_METHODS,
    help: DOMAIN_METHODS.join(", "),
  },
  alphas: {
    type: listOf(number()),
    otherwise: "0,0.7,1",
    help: "strengths of adapters",
  },
  // The rate for training with an adapter is too low for embeddings alone.
  lrEmbedding: {
    type: number({ least: 0 }),
    otherwise: "5e-3",
    help: "learning rate of methods that train embeddings only",
  },
  lrBeside: {
    type: number({ least: 0 }),
    otherwise: "the preset's",
    help: "learning rate of the embedding with an adapter",
  },
  noFusion: { type: flag, help: "leave out the fused models" },
});

/** What is run. */
export type DomainPlan = Plan<typeof OPTIONS>;

/** One arm in one domain: means over concepts, seeds and prompts. */
export interface DomainRow extends Readonly<Record<ScoreName, number | null>> {
  /** Which of the two. */
  readonly domain: Domain;
  /**
   * A method; `class` is the untouched base with the class word, `words` the
   * untouched base with a description of the concept in words, `references` the
   * references themselves.
   */
  readonly method: DomainMethod | "class" | "words" | "references";
  /** Strength of the adapter; null where there is none. */
  readonly alpha: number | null;
  /** How the domain's concepts were fused, if they were. */
  readonly fusion: "none" | "weight" | "gradient";
  /** Masked denoising error on held-out references; null of the references. */
  readonly heldout: number | null;
  /**
   * Held-out error below the class word's, paired by concept, t interval; null
   * of the references.
   */
  readonly heldoutGain: Interval;
  /** Image alignment above the class word's, paired by concept, t interval. */
  readonly gain: Interval;
  /** Image alignment of each concept. */
  readonly concepts: Readonly<Record<string, number>>;
}

/** The share of a concept's gain that its embedding alone has. */
export interface EmbeddingShare {
  /** Which of the two. */
  readonly domain: Domain;
  /** How the concepts were trained. */
  readonly method: DomainMethod;
  /** (class word − α = 0) / (class word − α = 1) of held-out error. */
  readonly heldout: Interval;
  /** (α = 0 − class word) / (α = 1 − class word) of image alignment. */
  readonly image: Interval;
}

/** The numbers of the figure. */
export interface DomainReport {
  /** A row per arm and domain. */
  readonly rows: readonly DomainRow[];
  /** The share of the gain that embeddings alone give. */
  readonly shares: readonly EmbeddingShare[];
  /** Whether verdicts are given. */
  readonly conclusive: boolean;
  /** Hash of all prompts. */
  readonly promptsSha256: string;
}

/** In-domain against out-domain concepts. */
export const fig3 = experiment({
  name: "domain",
  also: ["fig3"],
  summary: "Concepts that the base model can draw, and ones that it cannot",
  about: `Figure 3 of the paper: concepts that the base model can draw itself
(in-domain; it draws their pictures first) and identities, which it cannot draw.
Measures what the embedding alone holds, and what the weights add.`,
  options: OPTIONS,
  scales: {
    quick: {
      help: "2 concepts of each domain, 4 prompts: smoke test",
      plan: { inDomain: ["ulla", "finn"], prompts: 4 },
    },
  },
  check: checkMethods,
  run: measure,
});

/** Refuses options that the chosen methods do not use. */
function checkMethods(plan: DomainPlan): void {
  const { methods } = plan;
  const adapters = methods.filter((one) => one === "lora" || one === "ed-lora");
  const refuse = (field: keyof typeof OPTIONS, expected: string) => {
    if (plan[field] === undefined || plan[field] === false) return;
    throw cannot(
      "compare domains",
      `${expected} in --method with ${optionName(field)}`,
      methods.join(", "),
    );
  };
  if (adapters.length === methods.length) {
    refuse("lrEmbedding", "textual-inversion or p+");
  }
  if (adapters.length === 0) {
    for (const field of ["lrBeside", "alphas", "noFusion"] as const) {
      refuse(field, "lora or ed-lora");
    }
  }
}

type Arm = Pick<DomainRow, "domain" | "method" | "alpha" | "fusion">;

/** What is changed in a method's training. */
function changeOf(
  { lrEmbedding = 5e-3, lrBeside, settings }: DomainPlan,
  method: DomainMethod,
): Partial<TrainConfig> {
  if (method === "textual-inversion" || method === "p+") {
    return { lr: { embedding: lrEmbedding, textEncoder: 0, unet: 0 } };
  }
  const { lr } = settings.train;
  return lr && lrBeside !== undefined
    ? { lr: { ...lr, embedding: lrBeside } }
    : {};
}

/** Trains and fuses one domain: each concept in each arm. */
async function cellsOf(
  lab: Lab,
  plan: DomainPlan,
  domain: Domain,
  own: readonly Subject[],
): Promise<Cell<Arm>[]> {
  const { settings, methods, alphas = [0, 0.7, 1], noFusion } = plan;
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
            // α = 1 is left out of the spec, so that pictures are shared.
            model: alpha === null || alpha === 1 ? model : { ...model, alpha },
          });
        }
      }
      if (noFusion || !hasAdapter || own.length < 2) continue;
      const fusion = method === "lora" ? "weight" : "gradient";
      const [{ model }] = await lab.fuse([{
        concepts: singles.map(({ model }) => model.id),
        how: fusion === "weight"
          ? { type: "weight", lambda: 1 / own.length }
          : { type: "gradient", settings: settings.gradient },
        seed,
      }]);
      const arm: Arm = { domain, method, alpha: 1, fusion };
      cells.push(...armCells(arm, seed, own, singles, model));
    }
  }
  return cells;
}

/** Trains, draws and scores both domains. */
async function measure(
  lab: Lab,
  plan: DomainPlan,
): Promise<Outcome<DomainReport>> {
  const { settings, prompts, inDomain: inside, outDomain } = plan;
  const { sampling } = settings;
  const outside = outDomain ?? inside.map((name) => inDomain(name)!.twin);
  const own = {
    in: await subjects(lab, inside, prompts, sampling),
    out: await subjects(lab, outside, prompts, sampling),
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
    const names = own[domain].map(({ name }) => name);
    const inside = arms.filter(({ arm }) => arm.domain === domain);
    const values = (found: ArmScores<Arm>) => (score: ScoreName | "heldout") =>
      conceptMeans(found.rows, names, score);
    const lower = values(inside[0]);
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
    for (const one of inside) {
      const { method, alpha, fusion } = one.arm;
      const whole = inside.find(({ arm }) =>
        arm.method === method && arm.alpha === 1 && arm.fusion === "none"
      );
      if (alpha !== 0 || fusion !== "none" || !whole) continue;
      const share = (score: "heldout" | "image") => {
        // For an error, lower is better.
        const sign = score === "heldout" ? -1 : 1;
        const gains = (of: typeof lower) => of(score).map((v) => sign * v);
        return finite(retainedShare(
          gains(values(one)),
          gains(values(whole)),
          gains(lower),
          fold(key(0), "embedding share", domain, method, score),
        ));
      };
      shares.push({
        ...{ domain, method: method as DomainMethod },
        ...{ heldout: share("heldout"), image: share("image") },
      });
    }
  }
  const data: DomainReport = {
    ...{ rows, shares, promptsSha256: PROMPTS_SHA256 },
    conclusive: plan.scale !== "quick",
  };
  const sheet = await conceptPictures(lab, "domain", drawn, domainLabel, 1);
  return { data, report: domainReport(data, sheet) };
}

/** Means of an arm; of a score without values, none. */
function rowOf(
  arm: Arm,
  names: readonly string[],
  lower: (score: ScoreName | "heldout") => readonly number[],
  values: (score: ScoreName | "heldout") => readonly number[],
): DomainRow {
  const image = values("image"), errors = values("heldout");
  const none = { mean: null, low: null, high: null };
  const average = (score: ScoreName | "heldout") =>
    values(score).length === 0 ? null : rounded(mean(values(score)));
  return {
    ...arm,
    ...perScore(average),
    heldout: average("heldout"),
    heldoutGain: arm.method === "class" || errors.length === 0
      ? none
      : finite(pairedDifference(lower("heldout"), errors)),
    gain: arm.method === "class"
      ? none
      : finite(pairedDifference(image, lower("image"))),
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
 * The name of an arm.
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
    ["held-out error", ({ heldout }) => decimal(heldout)],
    ["below the class word", ({ heldoutGain }) => interval(heldoutGain)],
    [
      "verdict",
      ({ heldoutGain }) =>
        heldoutGain.mean === null
          ? ""
          : verdictOf(heldoutGain, { paper: false }, conclusive),
    ],
    ["text", ({ text }) => decimal(text)],
    ["image", ({ image }) => decimal(image)],
    ["masked image", ({ masked }) => decimal(masked)],
    ["retrieval", ({ retrieval }) => decimal(retrieval)],
    ["image above the class word", ({ gain }) => interval(gain)],
  ]);
}

/**
 * The share of a concept's gain that its embedding alone has, as a table.
 *
 * @param report The report.
 */
export function shareTable({ shares }: Pick<DomainReport, "shares">): Table {
  return tableOf(shares, [
    ["domain", ({ domain }) => domain],
    ["method", ({ method }) => LABELS[method]],
    ["of held-out error", ({ heldout }) => interval(heldout, 2)],
    ["of image alignment", ({ image }) => interval(image, 2)],
  ]);
}

/**
 * The whole report.
 *
 * @param report The numbers.
 * @param pictures Pictures of the same noise, an arm per column.
 */
export function domainReport(
  report: DomainReport,
  pictures: ReportPart,
): Report {
  return {
    name: "domain",
    title: "in-domain and out-domain concepts",
    lead: report.conclusive ? [] : ["No conclusion: smoke test only."],
    parts: [
      tablePart(domainTable(report)),
      tablePart(
        shareTable(report),
        "Share of a concept's gain that its embedding alone has (α = 0)",
      ),
      pictures,
    ],
  };
}
