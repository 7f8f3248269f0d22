/**
 * Hands the lab's work to other machines; what a queue needs is loaded when one
 * is asked for.
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
  /** Seconds that a Redis which does not answer is tried. @default 60 */
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
 * @param onNote Called with what a person should know, a line each.
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
  // A template stays out of the module graph: without a queue, no BullMQ.
  const { queueRunner }: QueueModule = await import(`./queue.ts${""}`);
  return await queueRunner({ url, patience, identity, store: shared, onNote });
}
