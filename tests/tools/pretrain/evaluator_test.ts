import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { fold, key, normal } from "../../../src/core/random.ts";
import { loadConceptArt } from "../../../src/micro/concepts.ts";
import { identityLoss, identityViews, spoiltLabel } from "./evaluator.ts";

/**
 * Supervised contrastive loss as it is written (Khosla et al. 2020, eq. 2), and
 * twice the margin of 0.4 to spoilt pictures.
 */
function plainLoss(
  rows: readonly (readonly number[])[],
  labels: readonly (string | null)[],
): number {
  const similarity = (i: number, j: number) =>
    rows[i].reduce((sum, v, k) => sum + v * rows[j][k], 0) / 0.1;
  const losses: number[] = [];
  const named = (label: string) =>
    rows.flatMap((_, j) => labels[j] === label ? [j] : []);
  rows.forEach((_, i) => {
    const label = labels[i];
    if (label === null || label.startsWith("spoilt")) return;
    const own = named(label).filter((j) => j !== i);
    if (own.length === 0) return;
    const bad = named(spoiltLabel(label));
    const all = rows.reduce(
      (sum, _, j) => j === i ? sum : sum + Math.exp(similarity(i, j)),
      0,
    );
    const average = (values: number[]) =>
      values.reduce((a, b) => a + b, 0) / Math.max(1, values.length);
    losses.push(
      -average(own.map((j) => Math.log(Math.exp(similarity(i, j)) / all))) +
        2 *
          average(
            own.flatMap((j) =>
              bad.map((s) =>
                Math.log(1 + Math.exp(similarity(i, s) - similarity(i, j) + 4))
              )
            ),
          ),
    );
  });
  return losses.reduce((a, b) => a + b) / losses.length;
}

Deno.test("the identity loss and its gradient are those of the formula", () => {
  const n = 8, d = 4;
  const values = normal(key(1), n * d);
  const labels = [
    "a",
    "a",
    null,
    "b",
    "b",
    "a",
    spoiltLabel("a"),
    spoiltLabel("c"),
  ];
  const rows = (x: ArrayLike<number>) =>
    Array.from(
      { length: n },
      (_, i) => Array.from({ length: d }, (_, k) => x[i * d + k]),
    );
  const { loss, by } = identityLoss(values, labels);
  assertAlmostEquals(loss, plainLoss(rows(values), labels), 1e-5);
  for (let i = 0; i < values.length; i++) {
    const moved = (by: number) => {
      const x = Array.from(values);
      x[i] += by;
      return plainLoss(rows(x), labels);
    };
    assertAlmostEquals(by[i], (moved(1e-4) - moved(-1e-4)) / 2e-4, 1e-3);
  }
});

Deno.test("views of one drawing share a label and differ in their pixels", async () => {
  const art = await loadConceptArt();
  for (let n = 0; n < 20; n++) {
    const { views, spoilt, label } = identityViews(
      fold(key(1), "views", n),
      art,
    );
    assertEquals(views[0].length, 64 * 64 * 3);
    assert(views[0].some((v, i) => v !== views[1][i]));
    spoilt.forEach((bad, k) => {
      assertEquals(bad.length, 64 * 64 * 3);
      assert(bad.some((v, i) => v !== views[k][i]));
    });
    // What is scored, training and reference frames, is never among them.
    assert(!/(train|reference)/.test(label));
  }
});
