import { assert, assertEquals, assertRejects } from "@std/assert";
import { key } from "../../src/core/random.ts";
import type { ClipVector } from "../../src/evaluation/clip.ts";
import {
  checkEvaluator,
  type Embed,
  type EvaluatorSet,
} from "../../src/evaluation/evaluator_check.ts";
import type { Subject } from "../../src/evaluation/corruptions.ts";
import type { Pixels } from "../../src/io/png.ts";
import { loadConceptArt } from "../../src/micro/concepts.ts";
import { evaluatorSet } from "../../src/micro/evaluator_set.ts";

const whole = evaluatorSet(await loadConceptArt(), () => []);

/** The subject alone, on grey: without it a histogram sees backgrounds. */
function alone({ image, mask }: Subject): Subject {
  const data = image.data.map((v, i) => {
    const m = mask[Math.floor(i / 3)];
    return Math.round(v * m + 128 * (1 - m));
  });
  return { image: { ...image, data }, mask };
}

/** Three identities, a few pictures of each. */
const set: EvaluatorSet = {
  identities: whole.identities.slice(3, 6).map((identity) => ({
    ...identity,
    references: identity.references.slice(0, 4).map(alone),
    gallery: identity.references.slice(4, 8).map((r) => alone(r).image),
  })),
  lookAlikes: whole.lookAlikes.slice(0, 2),
};

const unit = (values: ArrayLike<number>): ClipVector => {
  const norm = Math.hypot(...Array.from(values));
  return Float32Array.from(values, (v) => v / norm);
};

/** Knows colours and nothing of where they are. */
const histogram: Embed = (images) =>
  Promise.resolve(images.map(({ data }) => {
    const bins = new Float32Array(512);
    for (let i = 0; i < data.length; i += 3) {
      bins[(data[i] >> 5) * 64 + (data[i + 1] >> 5) * 8 + (data[i + 2] >> 5)]++;
    }
    return unit(bins);
  }));

/** Has every picture of the set by heart, and knows nothing else. */
function oracle(known: EvaluatorSet): Embed {
  const labels = new Map<string, number>();
  const bytes = ({ data }: Pixels) => data.join();
  known.identities.forEach(({ references, gallery }, i) => {
    for (const picture of [...references.map((r) => r.image), ...gallery]) {
      labels.set(bytes(picture), i);
    }
  });
  const n = known.identities.length;
  return (images) =>
    Promise.resolve(images.map((image) => {
      const row = new Float32Array(n + 1);
      row[labels.get(bytes(image)) ?? n] = 1;
      return row;
    }));
}

Deno.test("an evaluator that only sees colours fails", async () => {
  const check = await checkEvaluator(histogram, set, key(1));
  // Shuffled tiles keep every colour: only their seams change the background.
  assert(check.loses.shuffled8 < 0.2, String(check.loses.shuffled8));
  assert(check.loses.hue > 0.5, String(check.loses.hue));
  assert(check.failures.some((text) => text.includes("shuffled")));
});

Deno.test("an evaluator that is never wrong passes", async () => {
  const check = await checkEvaluator(oracle(set), set, key(1));
  assertEquals(check.failures, []);
  assertEquals(check.same, 1);
  assertEquals(check.classWord, 0);
  assertEquals(check.loses.shuffled8, 1);
  assertEquals(check.nearestNeighbour, 1);
  assertEquals(check.mistakes, []);
  assertEquals(check.drawn, false);
});

Deno.test("an evaluator that mistakes everyone for the first fails", async () => {
  const first: Embed = (images) =>
    Promise.resolve(images.map(() => Float32Array.of(1, 0)));
  const check = await checkEvaluator(first, set, key(1));
  assertEquals(check.nearestNeighbour, 1 / 3);
  assertEquals(check.failures.length, 3);
  assertEquals(check.mistakes.map(({ count }) => count), [4, 4]);
});

Deno.test("pictures of the class word are the far end where there are any", async () => {
  const drawn: EvaluatorSet = {
    ...set,
    identities: set.identities.map((identity, i, all) => ({
      ...identity,
      classWord: all[(i + 1) % all.length].gallery,
    })),
  };
  const check = await checkEvaluator(histogram, drawn, key(1));
  assertEquals(check.drawn, true);
  assert(check.classWord < check.same);
});

Deno.test("an evaluator is not tested on too little", async () => {
  await assertRejects(
    () =>
      checkEvaluator(histogram, {
        ...set,
        identities: set.identities.slice(1, 2),
      }, key(1)),
    Error,
    "at least two identities",
  );
  await assertRejects(
    () =>
      checkEvaluator(histogram, {
        ...set,
        identities: set.identities.map((i) => ({ ...i, gallery: [] })),
      }, key(1)),
    Error,
    "a gallery of zeno",
  );
});
