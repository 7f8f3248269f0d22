import * as tf from "@tensorflow/tfjs";
import { fold, type Key, normal } from "../../src/core/random.ts";
import {
  type Adapter,
  adapterTensors,
  withTensors,
} from "../../src/customize/lora.ts";

/**
 * An adapter that does something: `up` is random, as if trained, not zero.
 *
 * @param adapter A fresh adapter; its `up`s are disposed.
 * @param key Where the numbers come from.
 * @param std Their standard deviation.
 */
export function withRandomUp(
  adapter: Adapter,
  key: Key,
  std: number,
): Adapter {
  const ups = adapterTensors(adapter).filter(([path]) => path.endsWith(".up"));
  return withTensors(
    adapter,
    new Map(ups.map(([path, up]) => {
      up.dispose();
      const values = normal(fold(key, path), up.size, std);
      return [path, tf.tensor(values, up.shape)];
    })),
  );
}
