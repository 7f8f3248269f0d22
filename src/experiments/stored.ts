/**
 * Stored numbers of experiments, for notebooks: read from a folder or
 * recomputed, with a hash of the file.
 *
 * @module
 */
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { sha256 } from "../core/hash.ts";
import { exists, joinPath, readBytes, readJson } from "../io/files.ts";
import { MODEL_PARTS, withLab } from "../lab/lab.ts";
import { folderHash } from "../lab/store.ts";
import type { CostNumbers } from "./cost.ts";
import { planOf } from "./experiment.ts";
import type { FederatedNumbers } from "./federated.ts";
import type { DomainReport } from "./fig3.ts";
import type { Fig4Numbers } from "./fig4.ts";
import type { Fig7Numbers } from "./fig7_table.ts";
import type { Fig10Numbers } from "./fig10.ts";
import type { MergeNumbers } from "./merge_table.ts";
import { EXPERIMENTS } from "./registry.ts";
import type { RegionNumbers } from "./fig5/table.ts";
import type { SweepRow } from "./sweep.ts";
import type { Table1Numbers } from "./table1_table.ts";

/** Characters of a fingerprint. */
const DIGITS = 12;

/**
 * A line that identifies the content of a file or of a model's folder: its path
 * without leading `../`, and the start of its SHA-256. The line shows whether
 * outputs that contain it are older than their source.
 *
 * @param path A file, or the folder of a model.
 * @throws If there is nothing.
 *
 * @example
 * ```ts ignore
 * console.log(await fingerprint("../results/quick/merge.json"));
 * ```
 */
export async function fingerprint(path: string): Promise<string> {
  const isModel = await exists(joinPath(path, "unet"));
  const hash = isModel
    ? await folderHash(path, MODEL_PARTS)
    : await sha256(await readBytes(path));
  return `${path.replace(/^(\.\.?\/)+/, "")} ${hash.slice(0, DIGITS)}`;
}

/** The numbers of experiments, by name. */
export interface ResultNumbers {
  /** Every way to combine LoRAs. */
  readonly merge: MergeNumbers;
  /** The pipeline with its losses. */
  readonly fig4: Fig4Numbers;
  /** The ablation as grids. */
  readonly fig7: Fig7Numbers;
  /** The limits of regional sampling. */
  readonly fig10: Fig10Numbers;
  /** In-domain against out-domain concepts, Fig 3. */
  readonly domain: DomainReport;
  /** Fusion from what clients publish. */
  readonly federated: FederatedNumbers;
  /** Time and bytes. */
  readonly cost: CostNumbers;
  /** Methods, alone and fused. */
  readonly table1: Table1Numbers;
  /** Several concepts in one picture; `readRegions` reads earlier formats. */
  readonly regions: RegionNumbers;
  /** Fusion of 2, 4, … concepts. */
  readonly count: { readonly rows: readonly SweepRow[] };
  /** Adapters of rank 1, 2, …, alone and fused. */
  readonly rank: { readonly rows: readonly SweepRow[] };
}

/** Settings of {@linkcode resultOf}. */
export interface ResultOptions {
  /**
   * Folder with a `NAME.json` per experiment.
   *
   * @default "../results/quick"
   */
  readonly folder?: string;
  /**
   * Whether the experiment's quick plan is run instead, which takes minutes.
   *
   * @default false
   */
  readonly recompute?: boolean;
  /** Backend of a new run. @default "auto" */
  readonly backend?: BackendChoice;
  /** The base model of a new run. @default "../models/micro" */
  readonly model?: string;
  /** Cache folder of new runs. @default "../out/notebooks/cache" */
  readonly cache?: string;
}

/** Numbers of an experiment, and where they are from. */
export interface StoredResult<D> {
  /** The numbers. */
  readonly data: D;
  /** The fingerprint of the stored file, or that the run is new. */
  readonly source: string;
}

/**
 * Gives the numbers of an experiment: the stored ones, or those of a new quick
 * run.
 *
 * @param name Name of the experiment.
 * @param options Where the numbers are, or whether they are recomputed.
 * @throws If nothing is stored.
 *
 * @example
 * ```ts ignore
 * const { data, source } = await resultOf("fig4", { recompute: false });
 * ```
 */
export async function resultOf<N extends keyof ResultNumbers>(
  name: N,
  options: ResultOptions = {},
): Promise<StoredResult<ResultNumbers[N]>> {
  const { folder = "../results/quick", recompute = false } = options;
  const { backend = "auto", model = "../models/micro" } = options;
  const { cache = "../out/notebooks/cache" } = options;
  if (recompute) {
    const chosen = await selectBackend(backend);
    const experiment = EXPERIMENTS.find((one) => one.name === name)!;
    const plan = planOf(experiment, { scale: "quick" });
    const { data } = await withLab({
      ...{ model, clip: joinPath(model, "clip_b"), store: cache },
      ...{ backend: chosen.name, workers: 0 },
    }, (lab) => experiment.run(lab, plan));
    return {
      data: data as ResultNumbers[N],
      source: `${name}: a new quick run`,
    };
  }
  const path = joinPath(folder, `${name}.json`);
  if (!await exists(path)) {
    throw cannot(
      `show ${name}`,
      `${path}, which deno task paper writes`,
      "no such file",
    );
  }
  return {
    data: await readJson(path) as ResultNumbers[N],
    source: await fingerprint(path),
  };
}
