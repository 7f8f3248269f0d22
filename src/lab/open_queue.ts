/**
 * Sends the lab's work to other machines. The queue's packages are loaded only
 * when a queue is opened.
 *
 * @module
 */
import { openSharedStore } from "./open_store.ts";
import type { QueueIdentity, QueueOptions } from "./queue_options.ts";
import type { Runner } from "./runner.ts";

/** The address and store of a queue. */
export interface QueueRequest {
  /** `redis://[user:password@]host[:port][/db]`, or `rediss://` with TLS. */
  readonly url: string;
  /** The store that all machines see: a folder, or `s3://bucket/prefix`. */
  readonly store: string;
  /** Seconds to retry a Redis that does not answer. @default 60 */
  readonly patience?: number;
}

/** What is used of queue.ts. */
interface QueueModule {
  queueRunner(options: QueueOptions): Promise<Runner>;
}

/**
 * Opens a runner that hands specs to the workers of a queue.
 *
 * @param request The queue, and the store that all machines see.
 * @param identity What the workers must have in common.
 * @param copy Folder of the local copy of a bucket; the lab's store.
 * @param onNote Called with messages for the user, one line each.
 * @throws If queue or store do not answer or refuse.
 *
 * @example
 * ```ts ignore
 * const request = { url: "redis://10.0.0.5", store: "/mnt/store" };
 * using lab = await openLab({
 *   ...{ model: "models/micro", store: request.store },
 *   ...{ backend: "wasm", workers: 0 },
 *   runner: ({ model }) =>
 *     openQueue(request, { model, backend: "wasm" }, request.store),
 * });
 * ```
 */
export async function openQueue(
  { url, store, patience }: QueueRequest,
  identity: QueueIdentity,
  copy: string,
  onNote?: (line: string) => void,
): Promise<Runner> {
  const shared = await openSharedStore(store, copy);
  // An import by a template string is not in the module graph, so BullMQ is
  // loaded only for a queue.
  const { queueRunner }: QueueModule = await import(`./queue.ts${""}`);
  return await queueRunner({ url, patience, identity, store: shared, onNote });
}
