/**
 * How much memory there is.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { softwareCard } from "./device.ts";

/** Bytes that WebAssembly can address: 2³². */
const WASM_BYTES = 2 ** 32;

/** Bytes that there are for tensors. */
export interface MemoryLimit {
  /** How many; infinite where nobody says. */
  readonly bytes: number;
  /** Whose they are, as part of a sentence. */
  readonly whose: string;
}

function machine(): MemoryLimit {
  try {
    return { bytes: Deno.systemMemoryInfo().total, whose: "of this machine" };
  } catch {
    // Not permitted to ask: then the machine has to say no itself.
    return { bytes: Infinity, whose: "" };
  }
}

/**
 * The memory of the backend in use, as far as it can be known: WebGPU does not
 * tell how much a graphics card has.
 *
 * @param card Bytes of the graphics card, where the user says so.
 */
export function memoryLimit(card?: number): MemoryLimit {
  switch (tf.getBackend()) {
    case "wasm":
      return [
        { bytes: WASM_BYTES, whose: "that WebAssembly can address" },
        machine(),
      ].reduce((a, b) => (b.bytes < a.bytes ? b : a));
    case "cpu":
      return machine();
    case "webgpu":
      if (card !== undefined) {
        return { bytes: card, whose: "of the graphics card" };
      }
      return softwareCard() ? machine() : { bytes: Infinity, whose: "" };
    default:
      return { bytes: Infinity, whose: "" };
  }
}
