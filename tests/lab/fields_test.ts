/**
 * A field of a spec that is changed changes the result: with the hash that is a
 * result's name, this is what lets the tests of the experiments' options pretend
 * (pretender.ts).
 */
import { assert } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { method } from "../../src/customize/methods.ts";
import { type Lab, withLab } from "../../src/lab/lab.ts";
import type {
  Ask,
  FuseSpec,
  MergeSettings,
  TrainSpec,
} from "../../src/lab/specs.ts";
import { pathOf } from "../../src/lab/store.ts";
import { tensorsOf } from "../cli/option_pairs.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { inFolder } from "../helpers.ts";

/** Changes of an ask by what they change. */
type Changes<A> = Readonly<Record<string, Partial<A>>>;

/** Asks for all at once; every change must give another result than the ask. */
async function differ<A, R>(
  ask: A,
  changes: Changes<A>,
  results: (asks: A[]) => Promise<R[]>,
  contentOf: (result: R) => unknown = (result) => result,
): Promise<void> {
  const all = await results([
    ask,
    ...Object.values(changes).map((change) => ({ ...ask, ...change })),
  ]);
  const [base, ...others] = await Promise.all(
    all.map(async (one) => JSON.stringify(await contentOf(one))),
  );
  const same = Object.keys(changes).filter((_, i) => others[i] === base);
  assert(same.length === 0, `these change nothing: ${same.join(", ")}`);
}

const edLora = (change: Parameters<typeof method>[2]) =>
  method("ed-lora", "ablation", {
    ...{ steps: 1, batch: 1, seed: 1 },
    lr: { embedding: 0.1, textEncoder: 0.1, unet: 0.1 },
    ...change,
  }).train;

const art = (concept: string, count: number) => (
  { of: "art" as const, concept, set: "train" as const, count }
);

const TRAIN: Ask<TrainSpec> = {
  ...{ concept: "kuro", classWord: "animal", method: "ed-lora" },
  ...{ preset: "ablation", rank: 1, seed: 0, config: edLora({}) },
  pictures: art("kuro", 1),
};

const SAMPLING = {
  ...{ sampler: "ddim" as const, steps: 1, guidance: 2, negative: "" },
};

const GRADIENT = {
  ...{ method: "closed" as const, ridge: 1, templates: ["photo of a {}"] },
  ...{ steps: 1, images: 1, layers: "attention" as const },
};

const LBFGS = { ...GRADIENT, method: "lbfgs" as const, iterations: 1 };

Deno.test("every field of a spec changes its result", (t) =>
  inFolder(async (folder) => {
    const { model, clip } = await writeTinyWorld(folder);
    const store = `${folder}/store`;
    await selectBackend("wasm");
    await withLab(
      { model, clip, store, backend: "wasm", workers: 0 },
      async (lab) => {
        await t.step("training", () =>
          differ(
            TRAIN,
            {
              classWord: { classWord: "robot" },
              method: { method: "lora" },
              rank: { rank: 2 },
              seed: { seed: 1 },
              layers: { layers: "cross-attention-kv" },
              pictures: { pictures: art("kuro", 2) },
              "pictures' concept": { pictures: art("momo", 1) },
              design: { pictures: lookAlike(lab) },
              ...Object.fromEntries(
                Object.entries({
                  seed: { seed: 2 },
                  steps: { steps: 2 },
                  batch: { batch: 2 },
                  lr: { lr: { embedding: 0.1, textEncoder: 0.1, unet: 0.2 } },
                  noiseOffset: { noiseOffset: 0.5 },
                }).map(([name, change]) => [
                  `config's ${name}`,
                  { config: edLora(change) },
                ]),
              ),
            },
            lab.train,
            ({ model: { id } }) => tensorsOf(pathOf.concept(store, id)),
          ));
        const trained = await lab.train([TRAIN, { ...TRAIN, concept: "momo" }]);
        const concepts = trained.map(({ model }) => model.id);
        await t.step("publishing", () => publishing(lab, concepts[0]));
        await t.step("fusing", () => fusing(lab, concepts));
        await t.step("drawing", () => drawing(lab, concepts));
        await t.step("embedding", () => embedding(lab));
      },
    );
  }));

/** Another design of the concept that the lab's art has. */
function lookAlike({ art: { sprites } }: Lab) {
  const key = [...sprites.keys()].find((key) => key.startsWith("kuro/"))!;
  return { of: "look-alike" as const, concept: "kuro", design: key.slice(5) };
}

async function publishing(lab: Lab, concept: string): Promise<void> {
  const { store } = lab.folders;
  const { method: _, ridge: _r, ...settings } = GRADIENT;
  const ask = { concept, pictures: 1, settings, seed: 0, noise: 1 };
  const change = (more: Partial<typeof settings>) => (
    { settings: { ...settings, ...more } }
  );
  await differ(
    ask,
    {
      seed: { seed: 1 },
      noise: { noise: 2 },
      templates: change({ templates: ["{}"] }),
      steps: change({ steps: 2 }),
      images: change({ images: 2 }),
      layers: change({ layers: "cross-attention-kv" as never }),
      pictures: { pictures: 2 },
    },
    lab.publish,
    ({ id }) => tensorsOf(pathOf.published(store, id)),
  );
}

async function fusing(lab: Lab, concepts: readonly string[]): Promise<void> {
  const { store } = lab.folders;
  const { method: _, ridge: _r, ...settings } = GRADIENT;
  const published = (await lab.publish(
    concepts.map((concept) => ({ concept, pictures: 1, settings, seed: 0 })),
  )).map(({ id }) => id);
  const check = (
    how: FuseSpec["how"],
    changes: Readonly<Record<string, object>>,
    more: Changes<Pick<FuseSpec, "seed" | "published">> = {},
  ) =>
    differ(
      { concepts, how, seed: 0 },
      {
        ...Object.fromEntries(
          Object.entries(changes).map(([name, change]) => [
            name,
            {
              how: ("settings" in how
                ? { ...how, settings: { ...how.settings, ...change } }
                : { ...how, ...change }) as FuseSpec["how"],
            },
          ]),
        ),
        ...more,
        concepts: { concepts: concepts.slice(0, 1) },
      },
      lab.fuse,
      ({ model: { id } }) => tensorsOf(pathOf.fused(store, id)),
    );
  await check({ type: "weight", lambda: 0.5 }, { lambda: { lambda: 1 } });
  await check({ type: "gradient", settings: GRADIENT }, {
    ridge: { ridge: 0.1 },
    templates: { templates: ["{}"] },
    steps: { steps: 2 },
    images: { images: 2 },
    layers: { layers: "cross-attention-kv" },
    method: LBFGS,
  }, { seed: { seed: 1 }, published: { published } });
  await check({ type: "gradient", settings: LBFGS }, {
    iterations: { iterations: 30 },
  });
  const merge = (settings: MergeSettings) => (
    { type: "merge" as const, settings }
  );
  await check(merge({ method: "ties", density: 0.5 }), {
    method: { method: "magnitude_prune" },
    weights: { weights: [1, 2] },
    density: { density: 0.9 },
  });
  await check(merge({ method: "svd", rank: 1 }), { rank: { rank: 2 } });
  await check(merge({ method: "dare_linear", density: 0.5 }), {}, {
    seed: { seed: 1 },
  });
  await check(
    {
      type: "iteris",
      settings: {
        ...{ rounds: 1, templates: ["{}"], steps: 1 },
        layers: "attention",
      },
    },
    {
      rounds: { rounds: 2 },
      templates: { templates: ["photo of a {}"] },
      steps: { steps: 2 },
      layers: { layers: "cross-attention-kv" },
    },
    { seed: { seed: 1 } },
  );
}

async function drawing(lab: Lab, concepts: readonly string[]): Promise<void> {
  const pictures = (ids: readonly string[]) =>
    Promise.all(ids.map(async (id) => [...(await lab.picture(id)).data]));
  const [id] = concepts;
  const sample = { text: "a fox", noise: [0, "a"] };
  const sampling = (change: object) => (
    { sampling: { ...SAMPLING, steps: 2, ...change } }
  );
  const drawn = { samples: [sample], ...sampling({}) };
  await differ(
    { ...drawn, model: { type: "concept", id } as const },
    {
      model: { model: { type: "base" } as never },
      alpha: { model: { type: "concept", id, alpha: 0.5 } as never },
      text: { samples: [{ ...sample, text: "a cat" }] },
      noise: { samples: [{ ...sample, noise: [0, "b"] }] },
      sampler: sampling({ sampler: "euler" }),
      steps: sampling({ steps: 3 }),
      guidance: sampling({ guidance: 3 }),
      negative: sampling({ negative: "snow" }),
    },
    lab.draw,
    pictures,
  );
  const half = (name: string, left: number) => ({
    ...{ prompt: `a <${name}1> <${name}2>`, concepts: [name] },
    box: { left, right: left + 0.5, top: 0, bottom: 1 },
  });
  const layout = {
    ...{ prompt: "two animals", ...SAMPLING, size: { width: 64, height: 64 } },
    regions: [half("kuro", 0), half("momo", 0.5)],
  };
  const ask = {
    ...{ how: "region-adapters" as const, concepts, layout, noise: [[0]] },
    model: { type: "base" } as const,
  };
  await differ(
    ask,
    {
      switch: { how: "switch" as never, layout: named(layout) },
      composite: { how: "composite" as never, layout: named(layout) },
      "free-fuse": { how: "free-fuse" as never, layout: named(layout) },
      clora: { how: "clora" as never, layout: named(layout) },
      regions: {
        layout: { ...layout, regions: [half("kuro", 0.5), half("momo", 0)] },
      },
      guidance: { layout: { ...layout, guidance: 3 } },
      noise: { noise: [[1]] },
    },
    lab.compose,
    pictures,
  );
  const measured = {
    ...{ model: { type: "concept", id } as const, noise: [0] as number[] },
    ...{ pictures: art("kuro", 1), phrase: "<kuro1> <kuro2>" },
  };
  await differ(measured, {
    model: { model: { type: "base" } as never, phrase: "fox" },
    pictures: { pictures: art("momo", 1) },
    phrase: { phrase: "fox" },
    noise: { noise: [1] },
  }, lab.heldout);
}

/** A layout whose prompt names all concepts. */
function named<L extends { prompt: string }>(layout: L): L {
  return { ...layout, prompt: "a <kuro1> <kuro2> and a <momo1> <momo2>" };
}

async function embedding(lab: Lab): Promise<void> {
  const vectors = (lists: unknown) =>
    JSON.stringify(lists, (_, v) => v instanceof Float32Array ? [...v] : v);
  const model = { type: "base" } as const;
  const [[a, b]] = await lab.draw([{
    ...{ model, sampling: SAMPLING },
    samples: [0, 1].map((i) => ({ text: "a fox", noise: [i] })),
  }]);
  const box = { x: 0, y: 0, width: 1, height: 1 };
  await differ(
    { images: [a], regions: [[box]] },
    {
      images: { images: [b] },
      regions: { regions: [[{ ...box, width: 0.5 }]] },
      windows: { windows: { sides: [0.5], step: 0.5 } } as object,
    },
    lab.embed,
    vectors,
  );
  await differ(
    art("kuro", 1),
    {
      concept: { concept: "momo" },
      count: { count: 2 },
      set: { set: "reference" as never },
    },
    lab.references,
    vectors,
  );
  await differ(
    ["a fox"],
    { texts: ["a cat"] as never },
    (lists) => lab.texts(lists.map((list) => Object.values(list))),
    vectors,
  );
}
