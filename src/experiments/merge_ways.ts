/**
 * The published ways to combine LoRAs, as data: the lab's spec of each, and
 * what it needs.
 *
 * @module
 */
import { fedAvgWeights } from "../fusion/mergers.ts";
import type { ComposeHow, FuseSpec } from "../lab/specs.ts";
import type { Needs } from "./merge_table.ts";
import type { EmbeddingName, ExperimentPreset } from "./presets.ts";

/** A way to combine concepts in one model. */
export interface MergeWay {
  /** Short name, an option's value. */
  readonly id: string;
  /** Name in tables. */
  readonly label: string;
  /** Where its formula is from. */
  readonly source: string;
  /**
   * `statistics` of inputs measured by clients, `runs` of the clients' models
   * at the centre, special `training` by the clients, or all `pictures`.
   */
  readonly needs: Needs;
  /** Which concepts it combines. @default those of the plan's embedding */
  readonly method?: "orthogonal-adaptation";
  /** How the lab fuses them. */
  readonly how?: (of: WayContext) => FuseSpec["how"];
  /** How they are combined while sampling; without both: joint training. */
  readonly sampling?: Exclude<ComposeHow, "model">;
  /**
   * Whether only the concept that a prompt names is used, as masks and regions
   * need a place for each concept.
   *
   * @default false
   */
  readonly named?: boolean;
}

/** Input of a way's spec. */
export interface WayContext {
  /** Number of concepts. */
  readonly n: number;
  /** How concepts are trained and fused; rounds of IterIS. */
  readonly plan: {
    readonly settings: ExperimentPreset;
    readonly embedding: EmbeddingName;
    readonly rounds: number;
  };
  /** Pictures of each concept. */
  readonly counts: readonly number[];
  /** Ordinary captions. */
  readonly captions: readonly string[];
}

type Merger = Extract<FuseSpec["how"], { type: "merge" }>["settings"];

const merger = (settings: Merger) => (): FuseSpec["how"] => (
  { type: "merge", settings }
);
const sum = (lambda: number) => (): FuseSpec["how"] => (
  { type: "weight", lambda }
);
const PEFT = "PEFT's add_weighted_adapter on dense changes";

/** Every way, in the order of the table. */
export const MERGE_WAYS: readonly MergeWay[] = [
  {
    ...{ id: "average", label: "average, 1/n", needs: "nothing" },
    source: "Mix-of-Show, §3.3 (weight fusion)",
    how: ({ n }) => ({ type: "weight", lambda: 1 / n }),
  },
  {
    ...{ id: "sum", label: "sum, λ = 0.6", needs: "nothing" },
    source: "the baseline of Orthogonal Adaptation (Po et al. 2024)",
    how: sum(0.6),
  },
  {
    ...{ id: "tuned-sum", label: "sum, λ tuned", needs: "nothing" },
    source: "λ of the preset, chosen on development concepts",
    how: ({ n, plan: { settings, embedding } }) => ({
      type: "weight",
      lambda: settings.sumStrength[embedding] / n,
    }),
  },
  {
    ...{ id: "fedavg", label: "FedAvg", needs: "nothing" },
    source: "McMahan et al. 2017, weights by pictures",
    how: ({ counts }) => ({
      type: "merge",
      settings: { method: "task_arithmetic", weights: fedAvgWeights(counts) },
    }),
  },
  {
    ...{ id: "svd", label: "sum by SVD, rank r", needs: "nothing" },
    source: PEFT,
    how: ({ plan: { settings: { rank } } }) => ({
      type: "merge",
      settings: { method: "svd", rank },
    }),
  },
  {
    ...{ id: "prune", label: "magnitude pruning", needs: "nothing" },
    source: PEFT,
    how: merger({ method: "magnitude_prune", density: 0.5 }),
  },
  {
    ...{ id: "ties", label: "TIES", needs: "nothing" },
    source: "Yadav et al. 2023",
    how: merger({ method: "ties", density: 0.5 }),
  },
  {
    ...{ id: "dare", label: "DARE", needs: "nothing" },
    source: "Yu et al. 2023",
    how: merger({ method: "dare_linear", density: 0.5 }),
  },
  {
    ...{ id: "dare-ties", label: "DARE + TIES", needs: "nothing" },
    source: "Yu et al. 2023",
    how: merger({ method: "dare_ties", density: 0.5 }),
  },
  {
    ...{ id: "knots", label: "KnOTS + TIES", needs: "nothing" },
    source: "Stoica et al. 2024",
    how: merger({ method: "knots_ties", density: 0.5 }),
  },
  {
    ...{ id: "regmean", label: "RegMean", needs: "statistics" },
    source: "Jin et al. 2022, off-diagonal entries times 0.9",
    how: merger({ method: "regmean", a: 0.9 }),
  },
  {
    ...{ id: "ssr", label: "SSR", needs: "statistics" },
    source: "SSR-Merge 2026",
    how: merger({ method: "ssr" }),
  },
  {
    ...{ id: "custom-diffusion", label: "constrained, K/V" },
    source: "Custom Diffusion, eqs. 4 and 5; other layers averaged",
    needs: "statistics",
    how: ({ captions }) => ({
      type: "merge",
      settings: { method: "custom_diffusion", captions },
    }),
  },
  {
    ...{ id: "published", label: "gradient fusion, published files" },
    source: "Mix-of-Show, eq. 4, inputs of the clients' own models",
    needs: "statistics",
    how: ({ plan: { settings: { gradient } } }) => ({
      type: "gradient",
      settings: { ...gradient, method: "closed" },
    }),
  },
  {
    ...{ id: "iteris", label: "IterIS", needs: "runs" },
    source: "Chen et al. 2025",
    how: ({ plan: { rounds, settings: { gradient } } }) => ({
      type: "iteris",
      settings: {
        rounds,
        templates: gradient.templates,
        steps: gradient.steps,
        layers: gradient.layers,
      },
    }),
  },
  {
    ...{ id: "lbfgs", label: "gradient fusion, L-BFGS", needs: "runs" },
    source: "Mix-of-Show, eq. 4, the official code's solver",
    how: ({ plan: { settings: { gradient } } }) => ({
      type: "gradient",
      settings: { ...gradient, method: "lbfgs" },
    }),
  },
  {
    ...{ id: "gradient", label: "gradient fusion, closed form" },
    source: "Mix-of-Show, eq. 4",
    needs: "runs",
    how: ({ plan: { settings: { gradient } } }) => ({
      type: "gradient",
      settings: { ...gradient, method: "closed" },
    }),
  },
  {
    ...{ id: "orthogonal", label: "Orthogonal Adaptation, λ = 0.6" },
    source: "Po et al. 2024",
    needs: "training",
    method: "orthogonal-adaptation",
    how: sum(0.6),
  },
  {
    ...{ id: "switch", label: "LoRA Switch", needs: "nothing" },
    source: "Zhong et al. 2024: while sampling, one adapter per step",
    sampling: "switch",
  },
  {
    ...{ id: "composite", label: "LoRA Composite", needs: "nothing" },
    source: "Zhong et al. 2024: while sampling, mean of guidance",
    sampling: "composite",
  },
  {
    ...{ id: "w-switch", label: "W-Switch", needs: "nothing" },
    source: "Tsoumplekas et al. 2026: turns by the prompt's words",
    sampling: "w-switch",
  },
  {
    ...{ id: "w-composite", label: "W-Composite", needs: "nothing" },
    source: "Tsoumplekas et al. 2026: mean weighted by the prompt's words",
    sampling: "w-composite",
  },
  {
    ...{ id: "regional", label: "regional adapters", needs: "nothing" },
    source: "Mix-of-Show §3.4 with an adapter per region, not fused",
    ...{ sampling: "region-adapters", named: true },
  },
  {
    ...{ id: "free-fuse", label: "FreeFuse", needs: "nothing" },
    source: "Liu et al. 2025: the adapter inside the mask of its words",
    ...{ sampling: "free-fuse", named: true },
  },
  {
    ...{ id: "clora", label: "CLoRA", needs: "nothing" },
    source: "Meral et al. 2024: attention kept apart, outputs by masks",
    ...{ sampling: "clora", named: true },
  },
  {
    ...{ id: "joint", label: "joint training", needs: "pictures" },
    source: "the bound: one run on all pictures",
  },
];
