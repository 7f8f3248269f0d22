/**
 * Settings of the experiments, as data.
 *
 * What concerns concept training was chosen on the development concepts only
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
 * The test concepts in the order in which few of them are taken: two people,
 * two animals and a vehicle first, since look-alikes are where fusion conflicts.
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
  /** Which differences the two embeddings have; see `method`. */
  readonly preset: Preset;
  /** Rank of the adapters. */
  readonly rank: number;
  /**
   * Layers with an adapter, of methods that have the paper's layers (attention);
   * `gradient.layers` are those that are fused by gradient.
   */
  readonly layers: TargetName;
  /** What is changed in the method's own training configuration. */
  readonly train: Partial<TrainConfig>;
  /** How pictures are drawn. */
  readonly sampling: SamplingSettings;
  /** How gradient fusion is done. */
  readonly gradient: GradientSettings;
  /** n·λ of the tuned plain sum of n concepts, for each embedding. */
  readonly sumStrength: Readonly<Record<EmbeddingName, number>>;
  /** What stands before a caption in text alignment. */
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
 * 150 times smaller than the paper's and learn in 200 steps.
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
  // Of eight concepts λ = 0.125 and 0.2 were best, and alike: 0.16 is between.
  sumStrength: { lora: 1.3, edlora: 1.3 },
  // The embedded CLIP knows captions, not "A photo depicts": no word of that
  // prefix but two is in its vocabulary, and its captions need none.
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
    // The paper's are attention's; most of what this UNet draws is in its
    // convolutions, and concepts whose adapters reach them gain more.
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
    // Attention alone takes longer, and a larger rate.
    train: { ...TRAIN, steps: 300, lr: { ...TRAIN.lr, unet: 3e-3 } },
    gradient: {
      ...FEATURES,
      layers: "attention",
      ...{ method: "lbfgs", ridge: 0, images: 1 },
    },
  },
};

/** What a quick run does less of, as it is to take minutes. */
const QUICK = { trainSteps: 40, features: { images: 2, steps: 10 } } as const;

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
 * `trainSteps` does not say how many, and fewer features in fusion.
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
    sampling: {
      ...sampling,
      steps: values.steps ?? sampling.steps,
      guidance: values.guidance ?? sampling.guidance,
    },
  };
}

/**
 * Numbers of settings, as the options that change them.
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
