/**
 * Settings of the experiments, as data.
 *
 * Settings of concept training were chosen on the development concepts only
 * (`deno task experiment tune`, `deno task experiment lambda`).
 *
 * @module
 */
import {
  listOf,
  number,
  oneOf,
  optionTable,
  type OptionType,
  samplingSteps,
  seedNumber,
  type Values,
  whole,
} from "../core/options.ts";
import { TARGET_NAMES, type TargetName } from "../customize/lora.ts";
import type { MethodName, Preset } from "../customize/methods.ts";
import type { TrainConfig } from "../customize/train.ts";
import type { GradientSettings, SamplingSettings } from "../lab/specs.ts";

/** The two embeddings that the ablation compares. */
export type EmbeddingName = "lora" | "edlora";

/** Both, in the order of the tables. */
export const EMBEDDINGS: readonly EmbeddingName[] = ["lora", "edlora"];

/** The method behind an embedding. */
export const METHOD_OF: Readonly<Record<EmbeddingName, MethodName>> = {
  lora: "lora",
  edlora: "ed-lora",
};

/**
 * The test concepts; an experiment with n of them takes the first n. Two
 * people, two animals and a vehicle come first, since fusion conflicts most
 * between similar concepts.
 */
export const TEST_CONCEPTS: readonly string[] = [
  "kuro",
  "lila",
  "momo",
  "raja",
  "zorp",
  "bram",
  "pogo",
  "aero",
  "zeno",
  "pip",
  "kiki",
  "whir",
];

/** Everything that shapes an ablation besides concepts, prompts and seeds. */
export interface ExperimentPreset {
  /** Variant of the methods; see `method`. */
  readonly preset: Preset;
  /** Rank of the adapters. */
  readonly rank: number;
  /**
   * Layers with an adapter, of methods that have the paper's layers (attention);
   * `gradient.layers` are those that are fused by gradient.
   */
  readonly layers: TargetName;
  /** Changes of the method's training configuration. */
  readonly train: Partial<TrainConfig>;
  /** How pictures are drawn. */
  readonly sampling: SamplingSettings;
  /** How gradient fusion is done. */
  readonly gradient: GradientSettings;
  /**
   * Held-out references of a concept on which its error is measured.
   *
   * @default all 20
   */
  readonly heldoutPictures?: number;
  /** n·λ of weight fusion of n concepts with tuned λ, for each embedding. */
  readonly sumStrength: Readonly<Record<EmbeddingName, number>>;
  /** Prefix of captions in text alignment. */
  readonly textPrefix: string;
}

const SAMPLING: SamplingSettings = {
  sampler: "dpmpp_2m",
  steps: 20,
  guidance: 5,
  negative: "",
};

/**
 * Training of a concept, chosen on the development concepts. The embedding's
 * rate is the paper's; those of the adapters are larger, as these networks are
 * 150 times smaller than the paper's and are trained for 200 steps.
 */
const TRAIN = {
  steps: 200,
  batch: 4,
  lr: { embedding: 1e-3, textEncoder: 3e-4, unet: 2e-3 },
} as const;

/** What both presets have in common. */
const COMMON = {
  rank: 4,
  sampling: SAMPLING,
  // With eight concepts λ = 0.125 and 0.2 were best and equally good; 1.3/8 =
  // 0.16 lies between.
  sumStrength: { lora: 1.3, edlora: 1.3 },
  // The embedded CLIP was trained on captions without a prefix; only two words
  // of "A photo depicts" are in its vocabulary.
  textPrefix: "",
} as const;

/** Features that gradient fusion fits, in both presets. */
const FEATURES = {
  templates: ["photo of a {}", "{}"],
  steps: 20,
} as const;

/** The presets by name. */
export const PRESETS: Readonly<
  Record<"ablation" | "official", ExperimentPreset>
> = {
  ablation: {
    ...COMMON,
    preset: "ablation",
    // The paper uses attention layers only. In this small UNet convolutions
    // matter more: concepts gain more with adapters on all layers.
    layers: "all",
    train: TRAIN,
    gradient: {
      ...FEATURES,
      layers: "all",
      method: "closed",
      ridge: "auto",
      images: 4,
    },
  },
  official: {
    ...COMMON,
    preset: "official",
    layers: "attention",
    // With attention layers only, training needs more steps and a higher rate.
    train: { ...TRAIN, steps: 300, lr: { ...TRAIN.lr, unet: 3e-3 } },
    gradient: {
      ...FEATURES,
      layers: "attention",
      ...{ method: "lbfgs", ridge: 0, images: 1 },
    },
  },
};

/** Reduced settings of a quick run, which should take minutes. */
const QUICK = {
  trainSteps: 40,
  features: { images: 2, steps: 10 },
  heldoutPictures: 8,
} as const;

/** An option that changes a preset. */
export type SettingName =
  | "preset"
  | "rank"
  | "layers"
  | "trainSteps"
  | "steps"
  | "guidance";

/** Options that change a preset. */
export const SETTING_OPTIONS = optionTable({
  preset: {
    type: oneOf(["ablation", "official"]),
    otherwise: "ablation",
    help: "preset that the other settings change: ablation or official",
  },
  rank: {
    type: whole({ least: 1 }),
    otherwise: String(COMMON.rank),
    help: "rank of the adapters",
  },
  layers: {
    type: oneOf(TARGET_NAMES),
    otherwise:
      `${PRESETS.ablation.layers}; official: ${PRESETS.official.layers}`,
    help: "layers that have an adapter and are fused by gradient: " +
      TARGET_NAMES.join(", "),
  },
  trainSteps: {
    type: whole({ least: 1 }),
    otherwise: `${TRAIN.steps}; official: ${PRESETS.official.train.steps}; ` +
      `with --quick: ${QUICK.trainSteps}`,
    help: "training steps per concept",
  },
  steps: {
    type: samplingSteps,
    otherwise: String(SAMPLING.steps),
    help: "sampling steps",
  },
  guidance: {
    type: number(),
    otherwise: String(SAMPLING.guidance),
    help: "guidance scale",
  },
});

/** Values of {@linkcode SETTING_OPTIONS}. */
export type SettingValues = Partial<Values<typeof SETTING_OPTIONS>>;

/**
 * A preset, changed by options.
 *
 * @param values Of {@linkcode SETTING_OPTIONS}.
 * @param quick Whether it is for a quick run: fewer training steps, if
 * `trainSteps` does not say how many, fewer features in fusion, fewer held-out
 * references.
 */
export function settingsOf(
  values: SettingValues,
  quick = false,
): ExperimentPreset {
  const preset = PRESETS[values.preset ?? "ablation"];
  const { train, sampling, gradient } = preset;
  const layers = values.layers ?? preset.layers;
  return {
    ...preset,
    rank: values.rank ?? preset.rank,
    layers,
    gradient: {
      ...gradient,
      ...(quick && QUICK.features),
      layers: values.layers ?? gradient.layers,
    },
    train: {
      ...train,
      steps: values.trainSteps ?? (quick ? QUICK.trainSteps : train.steps),
    },
    ...(quick && { heldoutPictures: QUICK.heldoutPictures }),
    sampling: {
      ...sampling,
      steps: values.steps ?? sampling.steps,
      guidance: values.guidance ?? sampling.guidance,
    },
  };
}

/**
 * The settings as values of the options that change them.
 *
 * @param settings The settings.
 */
export function settingValues(
  { rank, layers, train, sampling: { steps, guidance } }: ExperimentPreset,
): SettingValues {
  return { rank, layers, trainSteps: train.steps, steps, guidance };
}

const embeddingMethods = oneOf(["lora", "ed-lora"]);

/** An embedding by its method; results have no hyphen in it. */
export const EMBEDDING: OptionType<EmbeddingName> = {
  ...embeddingMethods,
  read(what, name, found) {
    const known = EMBEDDINGS.find((one) => one === found);
    if (known) return known;
    const method = embeddingMethods.read(what, name, found);
    return EMBEDDINGS.find((one) => METHOD_OF[one] === method)!;
  },
};

/** Options of most experiments: prompts, training seeds, embeddings. */
export const RUN_OPTIONS = optionTable({
  prompts: {
    name: "n",
    type: whole({ least: 1, most: 20 }),
    default: 20,
    help: "prompts per concept",
  },
  seeds: { type: listOf(seedNumber), default: [0], help: "training seeds" },
  embeddings: {
    name: "method",
    type: listOf(EMBEDDING),
    default: EMBEDDINGS,
    otherwise: "both",
    help: "lora, ed-lora",
  },
});
