/**
 * The log of a training run as a table of comma-separated values.
 *
 * @module
 */
import type { TrainRecord } from "../customize/train.ts";
import { exists, readText, writeAtomic } from "../io/files.ts";

const COLUMNS = [
  ...["step", "loss", "diffusion", "attention", "prior"],
  ...["lr_embedding", "lr_text", "lr_unet", "embedding_norm", "seconds"],
] as const;

/** Steps between two writes; as the state is written. */
const EVERY = 50;

/** Writes a run's records to a file. */
export interface TrainLog {
  /** Takes a record; the file is written now and then, and at the end. */
  add(record: TrainRecord): Promise<void>;
}

/**
 * Opens a log. Where a stopped run goes on, what the file has of the steps
 * before stays.
 *
 * @param path The file.
 */
export function trainLog(path: string): TrainLog {
  let rows: string[] | undefined;
  return {
    async add({ step, total, loss, parts, lr, embeddingNorm, seconds }) {
      rows ??= await rowsBefore(path, step);
      const { diffusion, attention, prior } = parts;
      rows.push(
        [
          ...[step, loss, diffusion, attention, prior],
          ...[lr.embedding, lr.textEncoder, lr.unet],
          ...[embeddingNorm, Number(seconds.toFixed(3))],
        ].map((value) => value ?? "").join(","),
      );
      if ((step + 1) % EVERY !== 0 && step + 1 !== total) return;
      await writeAtomic(path, `${[COLUMNS.join(","), ...rows].join("\n")}\n`);
    },
  };
}

/** Rows of a log before a step. */
async function rowsBefore(path: string, step: number): Promise<string[]> {
  if (step === 0 || !await exists(path)) return [];
  const [head, ...rows] = (await readText(path)).trimEnd().split("\n");
  return head === COLUMNS.join(",")
    ? rows.filter((row) => Number(row.split(",")[0]) < step)
    : [];
}
