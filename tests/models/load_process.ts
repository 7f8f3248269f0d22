/**
 * Loads a file of square matrices and says how much memory that took; a process
 * of its own, because the peak is that of the process.
 *
 * Arguments: file, number of matrices, their size, backend.
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
import { type BackendName, selectBackend } from "../../src/core/backend.ts";
import { openSafetensors } from "../../src/io/safetensors.ts";
import { load } from "../../src/models/checkpoint.ts";
import { ParamSpec, type Spec } from "../../src/nn/spec.ts";

const [path, count, size, backend] = Deno.args;
type Matrices = Record<string, tf.Tensor2D>;
const spec = Object.fromEntries(
  Array.from({ length: Number(count) }, (_, i) => [
    `w${i}`,
    new ParamSpec([Number(size), Number(size)], "linear", { type: "zeros" }),
  ]),
) as unknown as Spec<Matrices>;
await selectBackend(backend as BackendName);
const peak = () =>
  1024 * Number(
    Deno.readTextFileSync("/proc/self/status").match(/VmHWM:\s+(\d+)/)![1],
  );
const before = peak();
const file = await openSafetensors(path);
const params = await load<Matrices>(spec, file);
file.close();
const last = params[`w${Number(count) - 1}`];
console.log(JSON.stringify({
  peak: peak() - before,
  corner: (await last.data())[Number(size) - 1],
}));
