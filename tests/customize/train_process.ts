/**
 * A short training run with a checkpoint, to be killed by train_test.ts.
 *
 * @module
 */
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { conceptTensors, initConcept } from "../../src/customize/concept.ts";
import { encodeData } from "../../src/customize/dataset.ts";
import { method } from "../../src/customize/methods.ts";
import { customize } from "../../src/customize/train.ts";
import { tinySd } from "./tiny_sd.ts";

await selectBackend("wasm");
const model = await tinySd();
const side = 16;
const data = await encodeData(model, [{
  pixels: {
    width: side,
    height: side,
    channels: 3,
    data: Uint8Array.from({ length: side * side * 3 }, (_, i) => i * 7 % 256),
  },
  captions: ["photo of a {}"],
}]);
const concept = await initConcept(model, {
  name: "toy",
  classWord: "cat",
  key: key(1),
});
const { train } = method("ed-lora", "paper", { steps: 4, batch: 1 });
const result = await customize(model, concept, data, train, {
  checkpoint: Deno.args[0],
  every: 1,
  onRecord: async ({ step }) => {
    console.log(`step ${step}`);
    // Time for the parent to kill us.
    await new Promise((done) => setTimeout(done, 300));
  },
});
const parts = [];
for (const tensor of conceptTensors(result).values()) {
  parts.push((await tensor.data() as Float32Array).slice());
}
const bytes = await new Blob(parts).arrayBuffer();
const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
console.log(hash.join(" "));
