import { assert, assertEquals, assertRejects } from "@std/assert";
import { key } from "../../src/core/random.ts";
import type { ClipVector } from "../../src/evaluation/clip.ts";
import {
  checkEvaluator,
  type Embed,
  type EvaluatorSet,
  evaluatorTable,
  evaluatorVerdict,
} from "../../src/evaluation/evaluator_check.ts";
import type { MaskedPicture } from "../../src/evaluation/corruptions.ts";
import type { Pixels } from "../../src/io/png.ts";
import { loadConceptArt } from "../../src/micro/concepts.ts";
import { evaluatorSet } from "../../src/micro/evaluator_set.ts";

const whole = evaluatorSet(await loadConceptArt(), () => []);

/** The subject alone, on grey: without it a histogram sees backgrounds. */
function alone({ image, mask }: MaskedPicture): MaskedPicture {
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

Deno.test("an evaluator that gives everyone one vector tells nobody", async () => {
  const constant: Embed = (images) =>
    Promise.resolve(images.map(() => Float32Array.of(1, 0)));
  const check = await checkEvaluator(constant, set, key(1));
  assertEquals(check.nearestNeighbour, 0);
  assertEquals(check.loses.shuffled8, 0);
  assertEquals(check.failures.length, 3);
  assertEquals(check.mistakes.map(({ count }) => count), [4, 4, 4]);
});

Deno.test("an evaluator of blurred pixels sees shuffles and not pixelation", async () => {
  // The same poses again, darker: what such an evaluator can know.
  const still: EvaluatorSet = {
    identities: set.identities.map((identity) => ({
      ...identity,
      references: [1, 0.8, 0.6].map((light) => {
        const { image, mask } = identity.references[0];
        const data = image.data.map((v) => Math.round(v * light));
        return { image: { ...image, data }, mask };
      }),
      gallery: [],
    })),
    lookAlikes: set.lookAlikes,
  };
  /** Means of 8×8 blocks, their own mean taken off. */
  const blocks: Embed = (images) =>
    Promise.resolve(images.map(({ width, data }) => {
      const sums = new Float32Array(8 * 8 * 3);
      data.forEach((value, i) => {
        const pixel = Math.floor(i / 3);
        const row = Math.floor(pixel / width / 8);
        const column = Math.floor(pixel % width / 8);
        sums[(row * 8 + column) * 3 + i % 3] += value;
      });
      const middle = sums.reduce((a, b) => a + b) / sums.length;
      return unit(sums.map((v) => v - middle));
    }));
  const check = await checkEvaluator(blocks, still, key(1));
  assertEquals(check.nearestNeighbour, 1);
  assert(check.loses.pixelated8 < 0.3, String(check.loses.pixelated8));
  assert(check.loses.shuffled8 > check.loses.pixelated8 + 0.3);
  assert(check.failures.some((text) => text.includes("pixelated")));
});

Deno.test("without a gallery a reference is told by the other references", async () => {
  const alone: EvaluatorSet = {
    ...set,
    identities: set.identities.map((i) => ({ ...i, gallery: [] })),
  };
  const check = await checkEvaluator(oracle(alone), alone, key(1));
  assertEquals(check.nearestNeighbour, 1);
  // Were a reference its own neighbour, any evaluator that tells pictures apart
  // would be right.
  let next = 0;
  const memory = new Map<string, number>();
  const apart: Embed = (images) =>
    Promise.resolve(images.map(({ data }) => {
      const bytes = data.join();
      if (!memory.has(bytes)) memory.set(bytes, next++);
      const row = new Float32Array(500);
      row[memory.get(bytes)!] = 1;
      return row;
    }));
  assertEquals(
    (await checkEvaluator(apart, alone, key(1))).nearestNeighbour,
    0,
  );
});

Deno.test("one identity is tested against its class word", async () => {
  const [first, second] = set.identities;
  const one: EvaluatorSet = {
    identities: [{ ...first, classWord: second.gallery }],
    lookAlikes: [{ name: "its class", gallery: second.gallery }],
  };
  const check = await checkEvaluator(oracle(one), one, key(1));
  assertEquals(check.failures, []);
  assertEquals(check.nearest, undefined);
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
  const [first, second] = set.identities;
  const bad: [Partial<EvaluatorSet>, string][] = [
    [{ identities: [] }, "identities, got none"],
    [{ identities: [first] }, "two identities, or look-alikes and pictures"],
    [
      { identities: [first, { ...second, references: [] }] },
      `two references of ${second.name}, got 0`,
    ],
    [
      { identities: [{ ...first, classWord: first.gallery }, second] },
      "for all identities, or for none",
    ],
    [{ identities: [first, first] }, "different names"],
    [{ lookAlikes: [{ name: "nobody", gallery: [] }] }, "pictures of nobody"],
  ];
  for (const [part, message] of bad) {
    await assertRejects(
      () => checkEvaluator(histogram, { ...set, ...part }, key(1)),
      Error,
      message,
    );
  }
  // A subject of one tile cannot be shuffled.
  const small = first.references.map(({ image }) => ({
    image,
    mask: new Float32Array(64 * 64).fill(1, 64 * 30 + 30, 64 * 30 + 34),
  }));
  await assertRejects(
    () =>
      checkEvaluator(histogram, {
        ...set,
        identities: [{ ...first, references: small }, second],
      }, key(1)),
    Error,
    "a subject that shuffled8 changes",
  );
});

Deno.test("the table and the first line say what failed", async () => {
  const good = await checkEvaluator(oracle(set), set, key(1));
  const bad = await checkEvaluator(histogram, set, key(1));
  const { head, rows } = evaluatorTable({ oracle: good, histogram: bad });
  assertEquals(head.slice(1), ["oracle", "histogram"]);
  assertEquals(rows[0], ["same", "1.000", bad.same.toFixed(3)]);
  assertEquals(rows.at(-1), ["test", "passes", "fails"]);
  assertEquals(rows[1][1], "0.000 (1.00)");
  assert(evaluatorVerdict("oracle", good).endsWith("passes its test."));
  const line = evaluatorVerdict("histogram", bad);
  assert(line.includes("FAILS") && line.includes("shuffled"));
});
