import * as tf from "@tensorflow/tfjs";
import { selectBackend } from "../../src/core/backend.ts";
import { type JobContext, moved, serve } from "../../src/core/pool.ts";

let factor = 1;

const handlers = {
  async init(
    options: { backend: "wasm" | "cpu"; factor: number; broken?: boolean },
  ): Promise<void> {
    if (options.broken) throw new Error("init broke");
    await selectBackend(options.backend);
    factor = options.factor;
  },
  async scale({ x, wait }: { x: number; wait: number }): Promise<number> {
    await new Promise((resolve) => setTimeout(resolve, wait));
    return x * factor;
  },
  setFactor: (value: number): void => void (factor = value),
  multiply(
    { a, b, n }: { a: Float32Array; b: Float32Array; n: number },
    { emit, worker }: JobContext<string>,
  ): ReturnType<typeof moved<Float32Array>> {
    emit(`${tf.getBackend()} ${worker}`);
    const result = tf.tidy(() =>
      tf.matMul(tf.tensor2d(a, [n, n]), tf.tensor2d(b, [n, n])).dataSync()
    ) as Float32Array;
    return moved(result, [result.buffer]);
  },
  fill(shared: Float32Array): void {
    shared.fill(7);
  },
  breakDown(message: string): never {
    throw new RangeError(message);
  },
  crash(_: null): Promise<void> {
    setTimeout(() => {
      throw new Error("out of reach");
    });
    return new Promise(() => {});
  },
};

serve(handlers);

/** Types for the host. */
export type PoolHandlers = typeof handlers;
