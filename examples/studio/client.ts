/**
 * The worker as the page sees it.
 *
 * @module
 */
import type { Answered, Asked, JobName, Jobs, Progress } from "./messages.ts";

/** A job was stopped, as was asked. */
export class Stopped extends Error {}

/** Asks the worker. */
export interface Client {
  /**
   * Has a job done, after those that were asked before.
   *
   * @throws What the library said, or {@linkcode Stopped}.
   */
  ask<Name extends JobName>(
    name: Name,
    job: Parameters<Jobs[Name]>[0],
  ): Promise<ReturnType<Jobs[Name]>>;
  /** Stops the job that runs. */
  stop(): void;
}

/**
 * Starts the worker.
 *
 * @param onProgress Called with how far its job is.
 */
export function startClient(onProgress: (progress: Progress) => void): Client {
  const worker = new Worker(new URL("./worker.js", import.meta.url), {
    type: "module",
  });
  const waiting = new Map<number, PromiseWithResolvers<unknown>>();
  const post = (message: Asked) => worker.postMessage(message);
  worker.onmessage = ({ data }: MessageEvent<Answered>) => {
    if ("progress" in data) return onProgress(data.progress);
    const { resolve, reject } = waiting.get(data.id)!;
    waiting.delete(data.id);
    if ("result" in data) resolve(data.result);
    else reject("error" in data ? new Error(data.error) : new Stopped());
  };
  worker.onerror = ({ message }) => {
    for (const { reject } of waiting.values()) reject(new Error(message));
    waiting.clear();
  };
  let count = 0;
  return {
    ask<Name extends JobName>(name: Name, job: Parameters<Jobs[Name]>[0]) {
      const id = count++;
      const answer = Promise.withResolvers<unknown>();
      waiting.set(id, answer);
      post({ id, name, job });
      return answer.promise as Promise<ReturnType<Jobs[Name]>>;
    },
    stop: () => post({ stop: true }),
  };
}
