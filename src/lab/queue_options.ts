/**
 * Options of a queue, as types alone: importing them does not load BullMQ.
 *
 * @module
 */
import type { BackendName } from "../core/backend.ts";
import type { SharedStore } from "./shared_store.ts";

/** How a queue is reached. */
export interface LinkOptions {
  /** `redis://[user:password@]host[:port][/db]`, or `rediss://` with TLS. */
  readonly url: string;
  /** Seconds to retry a Redis that does not answer. @default 60 */
  readonly patience?: number;
  /** Called with messages for the user. */
  readonly onNote?: (line: string) => void;
}

/** What the workers of a queue must have in common. */
export interface QueueIdentity {
  /** Hash of the base model. */
  readonly model: string;
  /** The backend, as others round differently. */
  readonly backend: BackendName;
  /** Version of the code that determines results. @default this one's */
  readonly code?: number;
}

/** How a queue is used. */
export interface QueueOptions extends LinkOptions {
  /** What its workers must have in common. */
  readonly identity: QueueIdentity;
  /** Where results go. */
  readonly store: SharedStore;
}
