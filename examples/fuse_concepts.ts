/**
 * Fuses concepts into one model by gradient fusion, saves it, and draws both of
 * them into one picture, each in a region of its own.
 *
 *     deno run -P=local examples/train_concept.ts bobo 300
 *     deno run -P=local examples/train_concept.ts dash 300
 *     deno run -P=local examples/fuse_concepts.ts \
 *       out/examples/bobo.safetensors out/examples/dash.safetensors
 *
 * Without files it fuses two concepts that have hardly been trained.
 *
 * @module
 */
import {
  type Concept,
  drawLayout,
  encodePng,
  finish,
  fuse,
  loadConcept,
  loadModel,
  parseLayout,
  resolveLayout,
  saveModel,
  selectBackend,
  toPixels,
} from "@mix-of-show/mix-of-show";
import { trainConcept } from "./train_concept.ts";

await selectBackend("auto");
const base = await loadModel(new URL("../models/micro", import.meta.url));

const concepts: Concept[] = [];
for (const file of Deno.args) concepts.push(await loadConcept(file, base));
for (const name of Deno.args.length === 0 ? ["bobo", "dash"] : []) {
  concepts.push((await trainConcept(base, name, 5)).concept);
}

const error = { before: 0, average: 0, fused: 0 };
const fused = await finish(fuse(base, concepts, { steps: 10 }), (record) => {
  if (record.type !== "layer" || record.stage === "weight") return;
  error.before += record.lossBefore;
  error.average += record.lossWeightFusion;
  error.fused += record.lossAfter;
});
console.log("feature error", error);
await saveModel("out/examples/fused", fused);

// The fused model is a model like any other, with more words in it.
const wide = 1 / concepts.length;
const layout = parseLayout({
  prompt: `${
    concepts.map(({ phrase }) => `a ${phrase}`).join(" and ")
  } on grass`,
  guidance: 5,
  // Room for each as wide as the pictures it was learned from.
  size: { width: 64 * concepts.length, height: 64 },
  // What is in no region follows the prompt of the whole picture.
  regions: concepts.map(({ phrase }, i) => ({
    box: {
      top: 0.2,
      left: (i + 0.1) * wide,
      bottom: 0.8,
      right: (i + 0.9) * wide,
    },
    prompt: `a ${phrase}`,
  })),
});
for await (const record of drawLayout(fused, await resolveLayout(layout))) {
  if (record.type !== "images") continue;
  const [picture] = await toPixels(record.images);
  await Deno.writeFile("out/examples/fused.png", encodePng(picture));
}
console.log("out/examples/fused and out/examples/fused.png");
