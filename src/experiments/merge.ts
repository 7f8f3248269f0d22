/**
 * Every published way to combine LoRAs, in one table: the same concepts, prompts
 * and noise; held-out error, CLIP scores, retrieval; seconds, bytes that a client
 * sends, and what the centre needs.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { listOf, oneOf, whole } from "../core/options.ts";
import { fold, key } from "../core/random.ts";
import { rounded } from "../evaluation/compare.ts";
import { mean } from "../evaluation/statistics.ts";
import type { Lab, PublishedFile, Trained } from "../lab/lab.ts";
import type { LayoutInput } from "../diffusion/layout.ts";
import type { ModelRef } from "../lab/specs.ts";
import { pathOf } from "../lab/store.ts";
import { promptsOf } from "../micro/in_domain.ts";
import {
  type ConceptPrompts,
  loadPrompts,
  promptText,
} from "../micro/prompts.ts";
import { TRAIN_IMAGES } from "../micro/concepts.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import {
  type MergeNumbers,
  mergeReport,
  type MergeRow,
} from "./merge_table.ts";
import { MERGE_WAYS, type MergeWay, type WayContext } from "./merge_ways.ts";
import { conceptPictures } from "./pictures.ts";
import {
  EMBEDDING,
  type EmbeddingName,
  RUN_OPTIONS,
  TEST_CONCEPTS,
} from "./presets.ts";
import {
  armCells,
  type Cell,
  type ConceptScores,
  type Drawn,
  estimate,
  promptRegion,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
import {
  CONCEPTS,
  DEVELOPMENT_CONCEPTS,
  oneDomain,
  phraseOf,
  promptSamples,
  type Subject,
  subjects,
  training,
} from "./subjects.ts";

const WAY_NAMES = MERGE_WAYS.map(({ id }) => id);

/** Ways that need no training of their own; a quick run compares these. */
const UNTRAINED = MERGE_WAYS.filter(({ needs, id }) =>
  needs !== "training" && needs !== "pictures" && id !== "lbfgs"
).map(({ id }) => id);

const OPTIONS = {
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 5),
    help: "concepts that are combined",
  },
  ways: {
    type: listOf(oneOf(WAY_NAMES)),
    default: WAY_NAMES,
    help: WAY_NAMES.join(", "),
  },
  embedding: {
    type: EMBEDDING,
    default: "edlora",
    otherwise: "ed-lora",
    help: "what the concepts are trained as: lora or ed-lora",
  },
  rounds: {
    type: whole({ least: 1, most: 20 }),
    default: 5,
    help: "rounds of IterIS",
  },
  prompts: RUN_OPTIONS.prompts,
  seeds: RUN_OPTIONS.seeds,
} as const;

/** What is compared. */
export type MergePlan = Plan<typeof OPTIONS> & {
  readonly embedding: EmbeddingName;
};

/**
 * Ordinary captions for Custom Diffusion's merge: prompts of the development
 * concepts, which are never scored, with their class words.
 *
 * @param prompts All prompts.
 */
export function ordinaryCaptions(prompts: readonly ConceptPrompts[]): string[] {
  return DEVELOPMENT_CONCEPTS.flatMap((name) => {
    const own = promptsOf(name, prompts);
    return own.prompts.map((prompt) => promptText(prompt, own.class));
  });
}

interface WayCost {
  readonly seconds: number;
  readonly clientSeconds: number;
  readonly bytes: number;
}

/** Results of a way on one seed. */
interface WayResult {
  readonly arm: string;
  readonly cells?: readonly Cell<string>[];
  /** Pictures of adapters that are combined while sampling. */
  readonly composed?: readonly Drawn<string>[];
  readonly cost?: Partial<WayCost>;
}

/** Concepts that are trained once on a seed, for all ways. */
interface Clients {
  readonly all: readonly Subject[];
  readonly context: WayContext;
  readonly seed: number;
  readonly trained: readonly Trained[];
  /** The files that they publish. */
  readonly published: readonly PublishedFile[];
}

/** Trains, combines, draws and scores. */
async function compareWays(
  lab: Lab,
  plan: MergePlan,
): Promise<Outcome<MergeNumbers>> {
  const { settings, embedding, seeds } = plan;
  const all = await subjects(
    lab,
    plan.concepts,
    plan.prompts,
    settings.sampling,
  );
  const ways = MERGE_WAYS.filter(({ id }) => plan.ways.includes(id));
  const context: WayContext = {
    ...{ n: all.length, plan },
    counts: all.map(({ train }) =>
      train.of === "drawn" ? train.pictures.length : TRAIN_IMAGES
    ),
    captions: ordinaryCaptions(await loadPrompts()),
  };
  const results: WayResult[] = [];
  for (const seed of seeds) {
    const trained = await lab.train(
      all.map((subject) => training(settings, subject, embedding, seed)),
    );
    const published = ways.some(({ needs }) => needs === "statistics")
      ? await lab.publish(trained.map(({ model }, i) => ({
        concept: model.id,
        pictures: context.counts[i],
        settings: measured(plan),
        seed,
      })))
      : [];
    results.push(
      { arm: "base", cells: armCells("base", seed, all) },
      { arm: "single", cells: armCells("single", seed, all, trained) },
    );
    const clients = { all, context, seed, trained, published };
    for (const way of ways) {
      results.push(await combine(lab, plan, clients, way));
    }
  }
  const composed = results.flatMap((one) => one.composed ?? []);
  const { arms: fused, drawn, scorer } = await scoreCells(
    lab,
    settings,
    all,
    results.flatMap(({ cells = [] }) => cells),
  );
  // Without a fused model (combination while sampling) there is no held-out
  // error.
  const scored = await scorer.score(composed);
  const arms = [
    ...fused,
    ...Map.groupBy(scored.keys(), (i) => composed[i].arm).entries().map((
      [arm, own],
    ) => ({ arm, rows: own.map((i) => scored[i]) })),
  ];
  const names = all.map(({ name }) => name);
  const rows = arms.map(({ arm, rows }) =>
    rowOf(
      arm,
      rows,
      names,
      results.flatMap((one) => one.arm === arm ? one.cost ?? [] : []),
    )
  );
  const sheet = await conceptPictures(
    lab,
    "merge",
    [...drawn, ...composed],
    (arm) => rows.find(({ way }) => way === arm)!.label,
    1,
  );
  return { data: { rows }, report: mergeReport(rows, all.length, sheet) };
}

/** Combines a seed's concepts in one way. */
async function combine(
  lab: Lab,
  plan: MergePlan,
  { all, context, seed, trained, published }: Clients,
  way: MergeWay,
): Promise<WayResult> {
  const { settings, embedding } = plan;
  const { id: arm, how, needs, method = embedding } = way;
  const phrase = (subject: Subject) => phraseOf(settings, method, subject);
  const cells = (model: ModelRef): Cell<string>[] =>
    all.map((subject) => (
      { arm, seed, subject, model, words: phrase(subject) }
    ));
  if (way.sampling) {
    const adapters = trained.map(({ model }) => model.id);
    return {
      arm,
      composed: await drawComposed(lab, plan, all, way, seed, adapters, phrase),
      cost: { bytes: await meanBytes(lab, trained) },
    };
  }
  if (!how) {
    const [{ model, seconds }] = await lab.train([jointly(plan, all, seed)]);
    return { arm, cells: cells(model), cost: { seconds } };
  }
  const clients = way.method
    ? await lab.train(all.map((one) => training(settings, one, method, seed)))
    : trained;
  const sent = needs === "statistics" && {
    published: published.map((file) => file.id),
  };
  const [{ model, seconds }] = await lab.fuse([{
    concepts: clients.map(({ model }) => model.id),
    how: how(context),
    ...sent,
    seed,
  }]);
  const cost = sent
    ? {
      clientSeconds: mean(published.map((file) => file.seconds)),
      bytes: mean(published.map((file) => file.bytes)),
    }
    : { bytes: await meanBytes(lab, clients) };
  return { arm, cells: cells(model), cost: { seconds, ...cost } };
}

/** Bytes of a concept's file, on average. */
async function meanBytes(
  { folders: { store } }: Lab,
  concepts: readonly Trained[],
): Promise<number> {
  const files = concepts.map(({ model }) => pathOf.concept(store, model.id));
  return mean(
    await Promise.all(
      files.map(async (file) => (await machine.files.stat(file))!.size),
    ),
  );
}

/** A line of the table. */
function rowOf(
  arm: string,
  rows: readonly ConceptScores[],
  names: readonly string[],
  costs: readonly Partial<WayCost>[],
): MergeRow {
  const way = MERGE_WAYS.find(({ id }) => id === arm);
  const random = (score: string) => fold(key(0), "merge", arm, score);
  const of = (score: ScoreName) =>
    rounded(estimate(rows, names, score, random(score)).mean!);
  const total = (name: keyof WayCost) => {
    const known = costs.flatMap((one) => one[name] ?? []);
    return known.length > 0 && known.length === costs.length
      ? mean(known)
      : null;
  };
  return {
    way: arm,
    label: way?.label ?? END_LABELS[arm as keyof typeof END_LABELS],
    needs: way?.needs ?? "",
    source: way?.source ?? "",
    heldout: rows.every((row) => row.heldout !== undefined)
      ? estimate(rows, names, "heldout", random("heldout"))
      : { mean: null, low: null, high: null },
    ...{ text: of("text"), image: of("image") },
    ...{ masked: of("masked"), retrieval: of("retrieval") },
    seconds: total("seconds"),
    clientSeconds: total("clientSeconds"),
    bytes: total("bytes"),
  };
}

/** Draws concepts' prompts with adapters that are combined while sampling. */
async function drawComposed(
  lab: Lab,
  { settings: { sampling } }: MergePlan,
  all: readonly Subject[],
  way: MergeWay,
  seed: number,
  adapters: readonly string[],
  own: (subject: Subject) => string,
): Promise<Drawn<string>[]> {
  const { sampler, steps, guidance, negative } = sampling;
  return await Promise.all(all.map(async (subject, k) => {
    const words = own(subject);
    const images = await lab.compose(
      promptSamples(subject, seed, words).map(({ text, noise }, i) => ({
        model: { type: "base" as const },
        how: way.sampling!,
        concepts: way.named ? [adapters[k]] : adapters,
        layout: {
          ...{ prompt: text, negative, sampler, steps, guidance },
          ...(way.sampling === "region-adapters" && inPlace(subject, i, text)),
        },
        noise: [noise],
      })),
    );
    return {
      ...{ arm: way.id, seed, subject, words, images: images.flat() },
      model: { type: "base" },
    };
  }));
}

/**
 * The concept in the region that its prompt names; the class word around it.
 */
function inPlace(
  { name, class: word, prompts }: Subject,
  i: number,
  text: string,
): Pick<LayoutInput, "prompt" | "regions"> {
  const { x, y, width, height } = promptRegion(prompts[i]);
  return {
    prompt: promptText(prompts[i], word),
    regions: [{
      box: { top: y, left: x, bottom: y + height, right: x + width },
      prompt: text,
      concepts: [name],
    }],
  };
}

const END_LABELS = {
  base: "class word, base model",
  single: "each concept alone",
} as const;

/** How clients measure: with the settings of this plan's gradient fusion. */
function measured({ settings: { gradient } }: MergePlan) {
  const { templates, steps, images, layers } = gradient;
  return { templates, steps, images, layers };
}

/**
 * One run on the pictures of all concepts, with as many steps per concept as in
 * single training.
 */
function jointly(plan: MergePlan, all: readonly Subject[], seed: number) {
  const { settings, embedding } = plan;
  const one = training(settings, all[0], embedding, seed);
  return {
    ...one,
    concept: "joint",
    classWord: "",
    pictures: {
      of: "joint" as const,
      parts: all.map(({ name, class: classWord, train }) => ({
        ...{ concept: name, classWord, pictures: train },
      })),
    },
    config: { ...one.config, steps: all.length * one.config.steps },
  };
}

/** Every way to combine LoRAs. */
export const mergeLoras = experiment({
  name: "merge",
  summary: "Every published way to combine LoRAs, in one table",
  about:
    `Trains concepts once, combines them in every way, draws the same pictures
with each, and writes a table: held-out error, alignment, retrieval, seconds, bytes
that a client sends, and what the centre needs.`,
  options: OPTIONS,
  scales: {
    quick: {
      help: "2 concepts, 2 prompts, no further training: smoke test",
      plan: {
        concepts: TEST_CONCEPTS.slice(0, 2),
        ways: UNTRAINED,
        prompts: 2,
        rounds: 2,
      },
    },
  },
  check({ concepts }) {
    oneDomain(concepts);
    if (concepts.length > 1) return;
    throw cannot("combine concepts", "at least two", concepts.join(", "));
  },
  run: (lab, plan) => compareWays(lab, plan as MergePlan),
});
