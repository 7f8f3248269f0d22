import * as tf from "@tensorflow/tfjs";
import { address, type WasmBackend } from "../../../src/core/kernels/simd.ts";

/**
 * Copies a tensor's numbers into memory that is already there. On wasm nothing
 * is allocated: fresh megabytes cost more than the copy, a page fault per 4 kB.
 *
 * @param tensor Float32, of any shape.
 * @param into Room for as many numbers.
 */
export async function readInto(
  tensor: tf.Tensor,
  into: Float32Array,
): Promise<void> {
  if (tf.getBackend() !== "wasm") return into.set(await tensor.data());
  const backend = tf.backend() as unknown as WasmBackend;
  const { buffer } = backend.wasm.asm.memory;
  into.set(new Float32Array(buffer, address(backend, tensor), tensor.size));
}
