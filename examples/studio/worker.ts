/**
 * The studio's worker: takes jobs one after the other, and hears in between
 * whether to stop.
 *
 * @module
 */
import { createEngine, type Engine, Stopped, type Watch } from "./engine.ts";
import type { Answered, Asked } from "./messages.ts";

/** What this needs of a worker's global scope. */
interface Scope {
  onmessage: ((event: MessageEvent<Asked>) => void) | null;
  postMessage(message: Answered, transfer?: Transferable[]): void;
}

const scope = globalThis as unknown as Scope;
const engine = createEngine();
let stop = false;
let last: Promise<void> = Promise.resolve();

/** A turn of the event loop, in which messages arrive. */
const turn = () => new Promise<void>((resolve) => setTimeout(resolve));

async function work(asked: Exclude<Asked, { stop: true }>): Promise<void> {
  const { id, name, job } = asked;
  stop = false;
  const watch: Watch = {
    progress: (progress) => scope.postMessage({ id, progress }),
    async breathe() {
      await turn();
      if (stop) throw new Stopped();
    },
  };
  try {
    // The page asks with the types of Jobs.
    const run = engine[name] as (job: unknown, watch: Watch) => ReturnType<
      Engine[typeof name]
    >;
    const result = await run(job, watch);
    scope.postMessage({ id, result });
  } catch (error) {
    scope.postMessage(
      error instanceof Stopped
        ? { id, stopped: true }
        : { id, error: error instanceof Error ? error.message : String(error) },
    );
  }
}

scope.onmessage = ({ data }) => {
  if ("stop" in data) stop = true;
  else last = last.then(() => work(data));
};
