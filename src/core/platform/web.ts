/**
 * What Deno and browsers have in common: workers, WebGPU, the console.
 *
 * @module
 */
import type { Machine } from "./machine_type.ts";

/** The part of a dedicated worker's global scope that is used. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<unknown>) => void) | null;
  postMessage(message: unknown, transfer: Transferable[]): void;
}

/** Workers have no window. */
const inWorker = () => "WorkerGlobalScope" in globalThis;

/** The web's part of a machine. */
export const web: Pick<
  Machine,
  | "processors"
  | "warn"
  | "gpu"
  | "startThread"
  | "startHelper"
  | "mayWait"
  | "inWorker"
  | "listen"
> = {
  processors: Math.max(1, globalThis.navigator?.hardwareConcurrency || 1),
  // deno-lint-ignore no-console
  warn: (line) => console.warn(line),
  gpu: () => (navigator as { gpu?: GPU }).gpu,
  startThread(module, name, { message, error }) {
    const worker = new Worker(module, { type: "module", name });
    worker.onmessage = ({ data }) => message(data);
    worker.onerror = (event) => {
      // Otherwise it would end the whole program.
      event.preventDefault();
      error(`stopped: ${event.message}`);
    };
    worker.onmessageerror = () => error("sent what cannot be copied");
    return {
      post: (data, transfer) => worker.postMessage(data, transfer),
      terminate: () => worker.terminate(),
    };
  },
  startHelper(run, data) {
    const text = `onmessage = ({ data }) => (${run})(data);`;
    const url = URL.createObjectURL(
      new Blob([text], { type: "text/javascript" }),
    );
    const worker = new Worker(url);
    worker.onerror = (event) => event.preventDefault();
    worker.postMessage(data);
    return {
      terminate() {
        worker.terminate();
        URL.revokeObjectURL(url);
      },
    };
  },
  mayWait: () => inWorker(),
  inWorker: () => inWorker(),
  listen(message) {
    const scope = globalThis as unknown as WorkerScope;
    scope.onmessage = ({ data }) => message(data);
    return (data, transfer) => scope.postMessage(data, transfer);
  },
};
