/**
 * LyCORIS's LoHa, LoKr and full differences as low-rank factors, exactly.
 *
 * A Hadamard product of two matrices of rank r has rank r² at most, a Kronecker
 * product the product of both ranks, and any matrix the smaller of its sides. So
 * each is `up · down` of some rank, and merging, fusing and saving need to know
 * no other kind of layer.
 *
 * Formulas: https://github.com/KohakuBlueleaf/LyCORIS (Yeh et al. 2024), with
 * Hyeon-Woo et al. 2022 for LoHa and its Tucker form for convolutions.
 *
 * @module
 */
import type { Site } from "../customize/lora.ts";
import { sameDiskShape } from "../models/checkpoint.ts";

/** How the parts of a layer make its change of weights. */
export type Algorithm = "LoRA" | "LoHa" | "LoKr" | "full";

/** A part of a layer that is no plain LoRA. */
export type LycorisPart =
  | "hada_w1_a"
  | "hada_w1_b"
  | "hada_w2_a"
  | "hada_w2_b"
  | "hada_t1"
  | "hada_t2"
  | "lokr_w1"
  | "lokr_w1_a"
  | "lokr_w1_b"
  | "lokr_w2"
  | "lokr_w2_a"
  | "lokr_w2_b"
  | "lokr_t2"
  | "diff";

/** Parts of layers that are no plain LoRA. */
export const LYCORIS_PARTS: readonly LycorisPart[] = [
  ...["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"] as const,
  ...["hada_t1", "hada_t2"] as const,
  ...["lokr_w1", "lokr_w1_a", "lokr_w1_b"] as const,
  ...["lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"] as const,
  "diff",
];

/**
 * The algorithm of a layer with these parts.
 *
 * @param parts Names of the parts; `down`, `up` and others are of a LoRA.
 * @returns The algorithm; several if the parts are mixed up.
 */
export function algorithmsOf(parts: Iterable<string>): Algorithm[] {
  const found = new Set<Algorithm>();
  for (const part of parts) {
    if (part.startsWith("hada_")) found.add("LoHa");
    else if (part.startsWith("lokr_")) found.add("LoKr");
    else if (part === "diff") found.add("full");
    else if (/^(down|up|mid)$/.test(part)) found.add("LoRA");
  }
  return [...found];
}

/** Shapes on disk by part. */
export type PartShapes = Readonly<
  Partial<Record<LycorisPart, readonly number[]>>
>;

/** What is wrong with the parts of a layer. */
export interface PartFaults {
  /** Parts that should be there. */
  readonly missing: readonly LycorisPart[];
  /** Parts of another shape, and what it should be. */
  readonly misshapen: readonly (readonly [LycorisPart, readonly number[]])[];
}

/**
 * Checks the parts of a layer against the layer.
 *
 * @param algorithm LoHa, LoKr or full.
 * @param site The layer.
 * @param shapes The parts that are there.
 */
export function checkParts(
  algorithm: Exclude<Algorithm, "LoRA">,
  site: Site,
  shapes: PartShapes,
): PartFaults {
  const missing: LycorisPart[] = [];
  const misshapen: [LycorisPart, readonly number[]][] = [];
  const need = (...parts: LycorisPart[]) => {
    const absent = parts.filter((part) => shapes[part] === undefined);
    missing.push(...absent);
    return absent.length === 0;
  };
  const expect = (part: LycorisPart, shape: readonly number[]) => {
    const sizes = shape.every((n) => Number.isInteger(n) && n > 0);
    if (!sizes || !sameDiskShape(shapes[part]!, shape)) {
      misshapen.push([part, shape]);
    }
  };
  const [height, width] = site.kernel;
  const { inputs, outputs } = site;
  const filter = site.kind === "conv" ? [height, width] : [];
  const wide = height * width;
  /** A product of two parts, or of a filter between two. */
  const product = (
    names: { a: LycorisPart; b: LycorisPart; core?: LycorisPart },
    rows: number,
    columns: number,
  ) => {
    const { a, b, core } = names;
    const rank = shapes[b]![0] ?? 0;
    if (core !== undefined && shapes[core]) {
      expect(core, [rank, rank, ...filter]);
      expect(a, [rank, rows]);
      expect(b, [rank, columns]);
    } else {
      expect(a, [rows, rank]);
      expect(b, [rank, columns * wide]);
    }
  };
  if (algorithm === "full") {
    expect("diff", [outputs, inputs, ...filter]);
  } else if (algorithm === "LoHa") {
    const whole = need("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b");
    const tucker = shapes.hada_t1 || shapes.hada_t2;
    if (!whole || (tucker && !need("hada_t1", "hada_t2"))) {
      return { missing, misshapen };
    }
    for (const i of [1, 2] as const) {
      product(
        { a: `hada_w${i}_a`, b: `hada_w${i}_b`, core: `hada_t${i}` },
        outputs,
        inputs,
      );
    }
  } else {
    const first = shapes.lokr_w1 ? true : need("lokr_w1_a", "lokr_w1_b");
    const second = shapes.lokr_w2 ? true : need("lokr_w2_a", "lokr_w2_b");
    if (!first || !second) return { missing, misshapen };
    // The first factor's sides divide the layer's; the second has the rest.
    const rows = shapes.lokr_w1?.[0] ?? shapes.lokr_w1_a![0];
    const columns = shapes.lokr_w1?.[1] ?? shapes.lokr_w1_b![1];
    if (shapes.lokr_w1) expect("lokr_w1", [rows, columns]);
    else {
      const rank = shapes.lokr_w1_b![0];
      expect("lokr_w1_a", [rows, rank]);
      expect("lokr_w1_b", [rank, columns]);
    }
    const [restRows, restColumns] = [outputs / rows, inputs / columns];
    if (shapes.lokr_w2) expect("lokr_w2", [restRows, restColumns, ...filter]);
    else {
      product(
        { a: "lokr_w2_a", b: "lokr_w2_b", core: "lokr_t2" },
        restRows,
        restColumns,
      );
    }
  }
  return { missing, misshapen };
}

/**
 * The number that α is divided by, or nothing if α has no effect: LyCORIS counts
 * it 1 where a Kronecker product has no factor of low rank.
 *
 * @param algorithm LoHa, LoKr or full.
 * @param shapes Shapes of the parts.
 */
export function lycorisRank(
  algorithm: Exclude<Algorithm, "LoRA">,
  shapes: PartShapes,
): number | undefined {
  if (algorithm === "full") return undefined;
  if (algorithm === "LoHa") return shapes.hada_w1_b![0];
  return (shapes.lokr_w2 ? undefined : shapes.lokr_w2_b![0]) ??
    (shapes.lokr_w1 ? undefined : shapes.lokr_w1_b![0]);
}

/** A matrix [rows, columns] as left [rows, rank] times right [rank, columns]. */
interface Factors {
  readonly rows: number;
  readonly rank: number;
  readonly columns: number;
  readonly left: Float64Array;
  readonly right: Float64Array;
}

function identity(n: number): Float64Array {
  const values = new Float64Array(n * n);
  for (let i = 0; i < n; i++) values[i * n + i] = 1;
  return values;
}

/** Any matrix, with the identity as one of its factors. */
function dense(values: Float64Array, rows: number, columns: number): Factors {
  const rank = Math.min(rows, columns);
  return rows <= columns
    ? { rows, columns, rank, left: identity(rows), right: values }
    : { rows, columns, rank, left: values, right: identity(columns) };
}

function product({ left, right, rows, rank, columns }: Factors): Float64Array {
  const result = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let p = 0; p < rank; p++) {
      const factor = left[i * rank + p];
      if (factor === 0) continue;
      for (let j = 0; j < columns; j++) {
        result[i * columns + j] += factor * right[p * columns + j];
      }
    }
  }
  return result;
}

/** Whether factors of this rank are smaller than the matrix with an identity. */
function isLow(rank: number, rows: number, columns: number): boolean {
  return rank <= Math.min(rows, columns);
}

/** (A₁B₁)∘(A₂B₂): column pq is A₁'s p times A₂'s q, and rows of B likewise. */
function hadamard(a: Factors, b: Factors): Factors {
  const { rows, columns } = a;
  const rank = a.rank * b.rank;
  if (!isLow(rank, rows, columns)) {
    const [x, y] = [product(a), product(b)];
    return dense(x.map((value, i) => value * y[i]), rows, columns);
  }
  const left = new Float64Array(rows * rank);
  const right = new Float64Array(rank * columns);
  for (let p = 0; p < a.rank; p++) {
    for (let q = 0; q < b.rank; q++) {
      const k = p * b.rank + q;
      for (let i = 0; i < rows; i++) {
        left[i * rank + k] = a.left[i * a.rank + p] * b.left[i * b.rank + q];
      }
      for (let j = 0; j < columns; j++) {
        right[k * columns + j] = a.right[p * columns + j] *
          b.right[q * columns + j];
      }
    }
  }
  return { rows, columns, rank, left, right };
}

/**
 * A⊗B, of which each is a product: (UₐVₐ)⊗(U_bV_b) = (Uₐ⊗U_b)(Vₐ⊗V_b). Columns
 * of B may be inputs and, inside each, the places of a filter: so are those of
 * the result.
 */
function kronecker(a: Factors, b: Factors): Factors {
  const rows = a.rows * b.rows;
  const columns = a.columns * b.columns;
  const rank = a.rank * b.rank;
  if (!isLow(rank, rows, columns)) {
    const [x, y] = [product(a), product(b)];
    const values = new Float64Array(rows * columns);
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) {
        values[i * columns + j] = x[
          Math.floor(i / b.rows) * a.columns + Math.floor(j / b.columns)
        ] * y[(i % b.rows) * b.columns + j % b.columns];
      }
    }
    return dense(values, rows, columns);
  }
  const left = new Float64Array(rows * rank);
  const right = new Float64Array(rank * columns);
  for (let p = 0; p < a.rank; p++) {
    for (let q = 0; q < b.rank; q++) {
      const k = p * b.rank + q;
      for (let i = 0; i < a.rows; i++) {
        for (let j = 0; j < b.rows; j++) {
          left[(i * b.rows + j) * rank + k] = a.left[i * a.rank + p] *
            b.left[j * b.rank + q];
        }
      }
      for (let s = 0; s < a.columns; s++) {
        for (let t = 0; t < b.columns; t++) {
          right[k * columns + s * b.columns + t] = a.right[p * a.columns + s] *
            b.right[q * b.columns + t];
        }
      }
    }
  }
  return { rows, columns, rank, left, right };
}

/** Reads the values of a part. */
export type ReadPart = (part: LycorisPart) => Promise<Float32Array>;

/**
 * The low-rank factors of a layer in PyTorch's layout.
 *
 * @param algorithm LoHa, LoKr or full.
 * @param site The layer.
 * @param shapes Shapes of the parts, checked by {@linkcode checkParts}.
 * @param read Reads a part.
 * @returns `down` [rank, in, (kh, kw)] and `up` [out, rank], in float32; their
 * product is the change of weights at scale 1.
 */
export async function lycorisFactors(
  algorithm: Exclude<Algorithm, "LoRA">,
  site: Site,
  shapes: PartShapes,
  read: ReadPart,
): Promise<{ rank: number; down: Float32Array; up: Float32Array }> {
  const area = site.kernel[0] * site.kernel[1];
  const values = async (part: LycorisPart) =>
    Float64Array.from(await read(part));
  /** A product of two parts; with a core, its filter stands between them. */
  const pair = async (
    a: LycorisPart,
    b: LycorisPart,
    core: LycorisPart,
    rows: number,
    inputs: number,
  ): Promise<Factors> => {
    const rank = shapes[b]![0];
    const columns = inputs * area;
    const [left, right] = [await values(a), await values(b)];
    if (!shapes[core]) return { rows, columns, rank, left, right };
    const middle = await values(core);
    // core [i, j, place], a [i, row], b [j, input].
    const turned = new Float64Array(rows * rank);
    for (let i = 0; i < rank; i++) {
      for (let row = 0; row < rows; row++) {
        turned[row * rank + i] = left[i * rows + row];
      }
    }
    const through = new Float64Array(rank * columns);
    for (let i = 0; i < rank; i++) {
      for (let j = 0; j < rank; j++) {
        for (let input = 0; input < inputs; input++) {
          const factor = right[j * inputs + input];
          for (let place = 0; place < area; place++) {
            through[i * columns + input * area + place] += factor *
              middle[(i * rank + j) * area + place];
          }
        }
      }
    }
    return { rows, columns, rank, left: turned, right: through };
  };
  const { inputs, outputs } = site;
  let factors: Factors;
  if (algorithm === "full") {
    factors = dense(await values("diff"), outputs, inputs * area);
  } else if (algorithm === "LoHa") {
    factors = hadamard(
      await pair("hada_w1_a", "hada_w1_b", "hada_t1", outputs, inputs),
      await pair("hada_w2_a", "hada_w2_b", "hada_t2", outputs, inputs),
    );
  } else {
    const rows = shapes.lokr_w1?.[0] ?? shapes.lokr_w1_a![0];
    const columns = shapes.lokr_w1?.[1] ?? shapes.lokr_w1_b![1];
    const first: Factors = shapes.lokr_w1
      ? dense(await values("lokr_w1"), rows, columns)
      : {
        rows,
        columns,
        rank: shapes.lokr_w1_b![0],
        left: await values("lokr_w1_a"),
        right: await values("lokr_w1_b"),
      };
    const [restRows, restColumns] = [outputs / rows, inputs / columns];
    const second = shapes.lokr_w2
      ? dense(await values("lokr_w2"), restRows, restColumns * area)
      : await pair("lokr_w2_a", "lokr_w2_b", "lokr_t2", restRows, restColumns);
    factors = kronecker(first, second);
  }
  const { rank, left, right } = factors;
  return {
    rank,
    down: Float32Array.from(right),
    up: Float32Array.from(left),
  };
}
