/**
 * The options `--queue`, `--store` and `--patience`, of what can be handed to
 * other machines.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { QueueRequest } from "../lab/open_queue.ts";
import {
  folder,
  number,
  optionTable,
  type OptionType,
  parsed,
  type Values,
} from "./options.ts";

/** The address of a queue. */
const queueUrl: OptionType<string> = parsed(
  "URL",
  (what, name, found) => {
    if (/^rediss?:\/\/[^/]/.test(found) && URL.canParse(found)) return found;
    const shown = found.replace(/:[^:@]*@/, ":***@");
    throw cannot(what, `${name} redis://[user:password@]host[:port]`, shown);
  },
);

/** A store that several machines see. */
const sharedStore: OptionType<string> = {
  ...folder,
  hint: "FOLDER",
};

/** Options of a queue, for what can be handed to other machines. */
export const QUEUE_OPTIONS = optionTable({
  queue: {
    type: queueUrl,
    help: "run the work by `deno task worker` on other machines: redis:// " +
      "or rediss:// (TLS), with user:password@ if needed",
  },
  store: {
    type: sharedStore,
    help: "with --queue: store of results that all machines see, a folder or " +
      "s3://bucket/prefix",
  },
  patience: {
    type: number({ least: 1 }),
    otherwise: "60",
    help: "with --queue: seconds to wait for a Redis that does not answer",
  },
});

/**
 * The queue that options ask for.
 *
 * @param what What is done, for messages.
 * @param values Of {@linkcode QUEUE_OPTIONS}.
 * @returns It; nothing where none is asked for.
 * @throws If one option is there without the other.
 */
export function queueRequest(
  what: string,
  { queue, store, patience }: Partial<Values<typeof QUEUE_OPTIONS>>,
): QueueRequest | undefined {
  if (queue !== undefined) {
    if (store === undefined) {
      throw cannot(what, "--store FOLDER or s3://… with --queue", "none");
    }
    return { url: queue, store, patience };
  }
  for (const [name, value] of Object.entries({ store, patience })) {
    if (value === undefined) continue;
    throw cannot(what, `--queue URL with --${name}`, "none");
  }
}
