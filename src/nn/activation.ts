import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { geluExact, quickGelu, silu } from "../core/kernels/ops.ts";

/** Activation names as they stand in diffusers and transformers configs. */
export const ACTIVATIONS = [
  "silu",
  "swish",
  "gelu",
  "mish",
  "relu",
  "quick_gelu",
  "gelu_new",
  "gelu_pytorch_tanh",
] as const;

/** One of {@linkcode ACTIVATIONS}. */
export type ActivationName = typeof ACTIVATIONS[number];

/**
 * Whether there is an activation of a name.
 *
 * @param name The name.
 */
export function isActivation(name: string): name is ActivationName {
  return (ACTIVATIONS as readonly string[]).includes(name);
}

/**
 * Applies an activation by its config name.
 *
 * @param name The name.
 * @param x Any shape.
 * @throws If the name is unknown.
 */
export function activate<T extends tf.Tensor>(name: string, x: T): T {
  switch (name) {
    case "silu":
    case "swish":
      return silu(x);
    case "gelu":
      return geluExact(x);
    case "quick_gelu":
      return quickGelu(x);
    case "relu":
      return tf.relu(x);
    case "mish":
      return tf.mul(x, tf.tanh(tf.softplus(x)));
    case "gelu_new":
    case "gelu_pytorch_tanh":
      return tf.mul(
        tf.mul(x, 0.5),
        tf.add(
          tf.tanh(
            tf.mul(
              Math.sqrt(2 / Math.PI),
              tf.add(
                x, // Not pow: WGSL has none for negative numbers.
                tf.mul(tf.mul(tf.mul(x, x), x), 0.044715),
              ),
            ),
          ),
          1,
        ),
      );
    default:
      throw cannot(
        "apply an activation",
        ACTIVATIONS.join(", "),
        name,
      );
  }
}
