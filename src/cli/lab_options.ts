/**
 * What commands with a lab share: its options, and a lab with a progress bar.
 *
 * @module
 */
import {
  type BackendChoice,
  type BackendInfo,
  selectBackend,
} from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { assertWritable, joinPath } from "../io/files.ts";
import { type Lab, type LabRecord, type Stage, withLab } from "../lab/lab.ts";
import { openQueue, type QueueRequest } from "../lab/open_queue.ts";
import type { Runner } from "../lab/runner.ts";
import { isBucket } from "../lab/shared_store.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import { BACKEND_OPTION, folder, optionTable, type Values } from "./options.ts";
import { createProgress, type Progress } from "./progress.ts";
import { QUEUE_OPTIONS, queueRequest } from "./queue_options.ts";
import { WORKERS_OPTION, workersFor } from "./workers.ts";

/** Where an experiment's models, results and work are. */
export interface LabRequest {
  readonly model: string;
  /** Folder of the evaluation CLIP. */
  readonly clip: string;
  /** Folder of the store. */
  readonly store: string;
  /** Folder of reports. */
  readonly out: string;
  readonly backend: BackendChoice;
  readonly workers?: number;
  /** Other machines that do the work. */
  readonly queue?: QueueRequest;
}

/** Options of the lab. */
export const LAB_OPTIONS = optionTable({
  cache: {
    type: folder,
    otherwise: "cache in the output folder",
    help: "folder of finished results, which are used again",
  },
  model: {
    type: folder,
    otherwise: "the embedded one",
    help: "base model",
  },
  clip: {
    type: folder,
    otherwise: "clip_b of the model",
    help: "evaluation CLIP",
  },
  ...BACKEND_OPTION,
  ...WORKERS_OPTION,
  ...QUEUE_OPTIONS,
});

/**
 * Where a lab is opened.
 *
 * @param values Of {@linkcode LAB_OPTIONS}.
 * @param out Folder of reports.
 */
export function labRequest(
  values: Partial<Values<typeof LAB_OPTIONS>>,
  out: string,
): LabRequest {
  const { model = EMBEDDED, backend = "auto", workers } = values;
  const queue = queueRequest("open a lab", values);
  if (queue && workers !== undefined) {
    throw cannot("open a lab", "--workers or --queue", "both");
  }
  if (queue && !isBucket(queue.store) && values.cache !== undefined) {
    throw cannot("open a lab", "--cache or a folder as --store", "both");
  }
  return {
    model,
    clip: values.clip ?? joinPath(model, "clip_b"),
    store: queue && !isBucket(queue.store)
      ? queue.store
      : values.cache ?? joinPath(out, "cache"),
    out,
    backend,
    workers,
    queue,
  };
}

const LABELS: Readonly<Record<Stage, string>> = {
  train: "training concepts",
  fuse: "fusing",
  publish: "publishing",
  draw: "drawing",
  compose: "drawing layouts",
  embed: "scoring",
  heldout: "held-out error",
};

/**
 * Shows a lab's progress on a bar.
 *
 * @param progress The bar.
 */
function showRecords(progress: Progress): (record: LabRecord) => void {
  return ({ stage, done, total, unit }) =>
    progress.update(LABELS[stage], done, total, unit);
}

/** Where an experiment runs. */
export interface Machine {
  readonly backend: BackendInfo;
  readonly workers: number;
  /** Both in words. */
  readonly describe: string;
  readonly progress: Progress;
}

/**
 * Opens a lab with a progress bar, uses it, and closes both.
 *
 * @param what What is done, for messages.
 * @param request Folders, backend, workers.
 * @param use What is done with the lab.
 * @param more Condition networks, another runner.
 * @throws Before work starts, if a folder or the backend is not as it should be.
 */
export async function inLab<T>(
  what: string,
  request: LabRequest,
  use: (lab: Lab, machine: Machine) => Promise<T>,
  more: {
    readonly networks?: Readonly<Record<string, string>>;
    readonly runner?: Runner;
  } = {},
): Promise<T> {
  const { model, clip, store, out } = request;
  await mustExist(what, model, clip, ...Object.values(more.networks ?? {}));
  await assertWritable(out);
  const backend = await selectBackend(request.backend);
  const progress = createProgress();
  const { queue } = request;
  let workers = workersFor(request.workers, backend.name);
  const result = await withLab(
    {
      ...more,
      ...{ model, clip, store, workers },
      backend: backend.name,
      runner: more.runner ?? (queue && (async (hashes) => {
        const runner = await openQueue(
          queue,
          { model: hashes.model, backend: backend.name },
          store,
          (line) => progress.line(line),
        );
        workers = runner.workers;
        return runner;
      })),
      onRecord: showRecords(progress),
    },
    (lab) =>
      use(lab, {
        ...{ backend, workers, progress },
        describe: `${backend.describe}, ${workers} workers`,
      }),
  );
  progress.finish();
  return result;
}
