/**
 * How much memory there is.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { softwareCard } from "./device.ts";
import { machine } from "./platform/machine.ts";

/** Bytes that WebAssembly can address: 2³². */
const WASM_BYTES = 2 ** 32;

/** Bytes that are available for tensors. */
export interface MemoryLimit {
  /** How many; infinite where nobody says. */
  readonly bytes: number;
  /** Whose they are, as part of a sentence. */
  readonly whose: string;
}

function hostLimit(): MemoryLimit {
  const bytes = machine.memory();
  // Where nobody says, the machine has to say no itself.
  return bytes === undefined
    ? { bytes: Infinity, whose: "" }
    : { bytes, whose: "of this machine" };
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
        hostLimit(),
      ].reduce((a, b) => (b.bytes < a.bytes ? b : a));
    case "cpu":
      return hostLimit();
    case "webgpu":
      if (card !== undefined) {
        return { bytes: card, whose: "of the graphics card" };
      }
      return softwareCard() ? hostLimit() : { bytes: Infinity, whose: "" };
    default:
      return { bytes: Infinity, whose: "" };
  }
}
