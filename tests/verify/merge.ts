/**
 * Mergers of LoRAs: PEFT's, KnOTS, RegMean, SSR.
 *
 * @module
 */
import { cannot } from "../../src/core/errors.ts";
import { type Delta, denseDelta } from "../../src/fusion/layer.ts";
import {
  concatenate,
  dareLinear,
  dareTies,
  type Election,
  knots,
  magnitudePrune,
  regMean,
  rerank,
  ssr,
  taskArithmetic,
  ties,
} from "../../src/fusion/mergers.ts";
import {
  type Matrix,
  matrix,
  transpose,
} from "../../src/optim/least_squares.ts";
import {
  type Check,
  type Line,
  line,
  maximumError,
  notCovered,
  relative,
} from "./check.ts";
import type { Golden } from "./fixture.ts";

/** merge.json. */
interface Facts {
  readonly weights: readonly number[];
  readonly density: number;
  readonly lambda_sum_weights?: readonly number[];
  readonly majority_sign_default?: Election;
  readonly scales?: readonly number[];
  readonly layers: Readonly<Record<string, unknown>>;
}

/** A golden matrix [out, in] (or vector) in the house layout [in, out]. */
function turned(g: Golden, name: string): Matrix {
  const { shape, data } = g.values(name);
  const [rows, columns = 1] = shape;
  return transpose(matrix(rows, columns, data));
}

/** How many of a numbered family there are, such as `layer0.lora0`. */
function count(g: Golden, prefix: string): number {
  const numbers = g.names.flatMap((name) =>
    name.startsWith(prefix)
      ? [parseInt(name.slice(prefix.length))].filter(Number.isInteger)
      : []
  );
  return numbers.length === 0 ? 0 : Math.max(...numbers) + 1;
}

/** What a layer's mergers are given. */
interface Terms {
  /** Scale multiplied into `up`. */
  readonly scaled: readonly Delta[];
  /** Factors as they stand in the file. */
  readonly plain: readonly Delta[];
  readonly scales: readonly number[];
  readonly grams: readonly Matrix[];
  readonly mask: (name: string) => readonly ArrayLike<number>[] | undefined;
}

/** The merged matrix that a tensor's name asks for, or nothing. */
function merged(name: string, facts: Facts, terms: Terms): Matrix | undefined {
  const { weights, density } = facts;
  const { scaled, plain, scales, grams, mask } = terms;
  const dense = () => scaled.map(denseDelta);
  const election = facts.majority_sign_default ?? "total";
  const withGrams = () => scaled.map((delta, k) => ({ delta, gram: grams[k] }));
  const number = (pattern: RegExp) => {
    const match = name.match(pattern);
    return match ? Number(match[1]) : undefined;
  };
  const masks = mask("dense_maskK");
  switch (name) {
    case "task_arithmetic":
      return taskArithmetic(dense(), weights);
    case "lambda_sum":
      return facts.lambda_sum_weights &&
        taskArithmetic(dense(), facts.lambda_sum_weights);
    case "magnitude_prune":
      return magnitudePrune(dense(), weights, density);
    case "ties_total":
    case "ties_frequency":
      return ties(dense(), weights, {
        density,
        election: name.slice("ties_".length) as Election,
      });
    case "dare_linear":
      return masks && dareLinear(dense(), weights, masks, density);
    case "dare_ties":
      return masks && dareTies(dense(), weights, masks, density, election);
    case "knots_ties":
    case "knots_singular_values": {
      const result = knots(
        [...scaled],
        (parts) => ties(parts, weights, { density, election }),
      );
      const values = result.singularValues;
      return name === "knots_ties"
        ? result.merged
        : matrix(1, values.length, values);
    }
    case "ssr":
      return denseDelta(ssr(withGrams()).delta);
    case "ssr.R":
      return transpose(ssr(withGrams()).mixing);
  }
  const rank = number(/^svd_rank(\d+)$/);
  if (rank !== undefined) {
    return denseDelta(rerank(concatenate(scaled, weights), rank));
  }
  const a = number(/^regmean_([\d.]+)$/);
  if (a !== undefined) return regMean(withGrams(), { a });
  const ridge = number(/^ssr_ridge([\d.e+-]+)\.R$/);
  if (ridge !== undefined) return transpose(ssr(withGrams(), { ridge }).mixing);
  const factor = name.match(/^factors\.(\w+)\.([AB])$/);
  if (!factor) return undefined;
  const [, method, letter] = factor;
  const own = mask(`factor_maskK.${letter}`);
  const mergers: Record<
    string,
    (f: readonly Matrix[], w: readonly number[]) => Matrix
  > = {
    linear: taskArithmetic,
    magnitude_prune: (f, w) => magnitudePrune(f, w, density),
    ties: (f, w) => ties(f, w, { density, election }),
    ...(own
      ? {
        dare_linear: (f, w) => dareLinear(f, w, own, density),
        dare_ties: (f, w) => dareTies(f, w, own, density, election),
      }
      : {}),
  };
  const merger = mergers[method];
  if (!merger) return undefined;
  const which = letter === "A" ? "down" : "up";
  const zero = (m: Matrix) => matrix(m.rows, m.columns);
  return mergeFactors(
    plain,
    weights.map((w, k) => w * scales[k]),
    // Masks are of one factor's shape: the other is not merged.
    (f, w, at) => (at === which ? merger(f, w) : zero(f[0])),
  )[which];
}

/**
 * PEFT's `add_weighted_adapter`: merges the factors A and B separately, each
 * weighted by √(weight · scale). The product has cross terms: kept to compare.
 *
 * @param deltas Factors of equal rank, without scale.
 * @param weights wᵢ · scaleᵢ, not negative.
 * @param merger Merges a list of factors with the square roots.
 */
export function mergeFactors(
  deltas: readonly Delta[],
  weights: readonly number[],
  merger: (
    factors: readonly Matrix[],
    weights: readonly number[],
    which: "down" | "up",
  ) => Matrix,
): Delta {
  if (weights.some((w) => !(w >= 0))) {
    throw cannot("merge factors", "weights ≥ 0", weights);
  }
  const roots = weights.map(Math.sqrt);
  return {
    down: merger(deltas.map(({ down }) => down), roots, "down"),
    up: merger(deltas.map(({ up }) => up), roots, "up"),
  };
}

const merge: Check = {
  id: "merge",
  files: [
    "merge/merge.json",
    "merge/inputs.safetensors",
    "merge/expected.safetensors",
  ],
  async *run(context) {
    const { fixture } = context;
    const facts = await fixture.json<Facts>("merge/merge.json");
    const inputs = await fixture.golden("merge/inputs.safetensors");
    const expected = await fixture.golden("merge/expected.safetensors");
    const masks = await fixture.has("merge/masks.safetensors")
      ? await fixture.golden("merge/masks.safetensors")
      : undefined;
    for (const layer of Object.keys(facts.layers)) {
      const loras = count(inputs, `${layer}.lora`);
      const plain = Array.from({ length: loras }, (_, k) => ({
        down: turned(inputs, `${layer}.lora${k}.lora_A.weight`),
        up: turned(inputs, `${layer}.lora${k}.lora_B.weight`),
      }));
      const scales = facts.scales ?? plain.map(() => 1);
      const terms: Terms = {
        plain,
        scales,
        scaled: plain.map(({ down, up }, k) => ({
          down,
          up: matrix(up.rows, up.columns, up.data.map((x) => scales[k] * x)),
        })),
        grams: Array.from(
          { length: count(inputs, `${layer}.gram`) },
          (_, k) => turned(inputs, `${layer}.gram${k}`),
        ),
        mask: (name) => {
          const names = plain.map((_, k) =>
            `${layer}.${name.replace("K", `${k}`)}`
          );
          if (!masks || !names.every((n) => masks.has(n))) return undefined;
          return names.map((n) => turned(masks, n).data);
        },
      };
      for (const key of expected.names) {
        if (!key.startsWith(`${layer}.`)) continue;
        yield compared(
          key,
          expected,
          () => merged(key.slice(layer.length + 1), facts, terms),
        );
      }
    }
  },
};

function compared(
  key: string,
  expected: Golden,
  make: () => Matrix | undefined,
): Line {
  const actual = make();
  const name = `merge/${key}`;
  if (!actual) return notCovered(name, "the library has no such merger");
  const golden = turned(expected, key);
  if (actual.rows !== golden.rows || actual.columns !== golden.columns) {
    return {
      name,
      status: "FAIL",
      reason: `expected [${golden.columns}, ${golden.rows}], got ` +
        `[${actual.columns}, ${actual.rows}]`,
    };
  }
  return line(
    name,
    maximumError(actual.data, golden.data),
    relative(expected.values(key).data),
  );
}

/** Every check of mergers. */
export const MERGE_CHECKS: readonly Check[] = [merge];
