// A worker of node_suite.js.
import * as tf from "@tensorflow/tfjs-core";
import { selectBackend } from "../src/core/backend.js";
import { serve } from "../src/core/pool.js";

serve({
  init: ({ backend }) => selectBackend(backend).then(() => undefined),
  square: async (x) => (await tf.tidy(() => tf.square(tf.scalar(x))).data())[0],
  fail() {
    throw new Error("on purpose");
  },
});
