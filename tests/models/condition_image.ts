import * as tf from "@tensorflow/tfjs";
import { openSafetensors } from "../../src/io/safetensors.ts";
import { fixturePath } from "../helpers.ts";

/** A condition image of the fixture as [b, h, w, 3] in [0, 1]. */
export async function conditionImage(
  path: string,
  name: string,
): Promise<tf.Tensor4D> {
  const file = await openSafetensors(fixturePath(path));
  const { data, shape } = await file.read(name);
  file.close();
  return tf.tidy(() =>
    tf.transpose(
      tf.tensor4d(
        Float32Array.from(data as Uint8Array, (v) => v / 255),
        shape as [number, number, number, number],
      ),
      [0, 2, 3, 1],
    )
  );
}
