/**
 * What the ablation is asked for and what its run gives.
 *
 * @module
 */
import type { HeldOutError } from "../evaluation/heldout.ts";
import type { Fused, Trained } from "../lab/lab.ts";
import type { AblationReport } from "./ablation_schema.ts";
import type { EmbeddingName, ExperimentPreset } from "./presets.ts";
import type { Drawn } from "./scorer.ts";

/** A kind of fusion. */
export type FusionName = "weight" | "gradient" | "weight_best_lambda";

/** What is run. */
export interface AblationPlan {
  /** Which of the command's scales; a quick run allows no conclusion. */
  readonly scale: AblationReport["scale"];
  /** How concepts are trained, fused and drawn. */
  readonly settings: ExperimentPreset;
  /** Proper names of identities. */
  readonly concepts: readonly string[];
  /** Prompts of each concept, taken from the four groups in turn. */
  readonly prompts: number;
  /** Training seeds; each also draws its own pictures. */
  readonly seeds: readonly number[];
  /** All seeds that were planned, if these are some of them: no conclusion. */
  readonly planned?: readonly number[];
  /** Which embeddings are compared. @default both */
  readonly embeddings?: readonly EmbeddingName[];
  /** Which fusions are compared. @default all three */
  readonly fusions?: readonly FusionName[];
}

/** Pictures of one concept in one arm, and the model that drew them. */
export interface AblationPictures extends Drawn {
  /** Names of pictures of concept-free prompts. */
  readonly free: readonly string[];
  /** Error on held-out references. */
  readonly heldout: HeldOutError;
}

/** What the run gives, as it goes. */
export type AblationRecord =
  | {
    readonly type: "trained";
    readonly embedding: EmbeddingName;
    readonly seed: number;
    readonly singles: readonly Trained[];
  }
  | {
    readonly type: "fused";
    readonly arm: string;
    readonly seed: number;
    readonly model: Fused;
  }
  | { readonly type: "drawn"; readonly pictures: AblationPictures };

/** A report without what only the caller knows. */
export type AblationNumbers = Omit<AblationReport, "created" | "machine">;
