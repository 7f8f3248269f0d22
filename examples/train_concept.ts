/**
 * Trains a concept (ED-LoRA: two layer-wise tokens and an adapter) and draws it
 * before and after. A real training takes 300 steps or more.
 *
 *     deno run -P=local examples/train_concept.ts bobo 300
 *
 * @module
 */
import {
  attachConcept,
  type Concept,
  customize,
  encodeData,
  encodePng,
  generate,
  key,
  loadModel,
  method,
  type Model,
  saveConcept,
  selectBackend,
  startConcept,
} from "@mix-of-show/mix-of-show";
import { classOf, conceptPictures } from "./concept_pictures.ts";

/** Trains a character of the embedded world. */
export async function trainConcept(
  model: Model,
  name: string,
  steps: number,
): Promise<{ start: Concept; concept: Concept }> {
  // Pictures go through the autoencoder once.
  const data = await encodeData(model, await conceptPictures(name));
  // Rates for this small model; what is not given is the paper's.
  const edLora = method("ed-lora", "paper", {
    steps,
    lr: { embedding: 5e-3, textEncoder: 1e-4, unet: 1e-3 },
  });
  const start = await startConcept(model, edLora, {
    name,
    classWord: classOf(name),
    key: key(0),
  });
  const concept = await customize(model, start, data, edLora.train, {
    onRecord({ step, total, loss }) {
      if ((step + 1) % 5 > 0 && step + 1 < total) return;
      console.log(
        `${name}: step ${step + 1} of ${total}, loss ${loss.toFixed(4)}`,
      );
    },
  });
  return { start, concept };
}

if (import.meta.main) {
  const [name = "bobo", steps = "20"] = Deno.args;
  await selectBackend("auto");
  const model = await loadModel(new URL("../models/micro", import.meta.url));
  const { start, concept } = await trainConcept(model, name, Number(steps));

  await Deno.mkdir("out/examples", { recursive: true });
  const file = `out/examples/${name}.safetensors`;
  await saveConcept(file, concept, model);
  console.log(file);

  for (const [when, one] of Object.entries({ start, end: concept })) {
    const [picture] = await generate(attachConcept(model, one), {
      prompts: [`${one.phrase} on grass`],
      guidance: 5,
    });
    const path = `out/examples/${name}-${when}.png`;
    await Deno.writeFile(path, encodePng(picture));
    console.log(path);
  }
}
