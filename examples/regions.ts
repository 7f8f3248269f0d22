/**
 * Draws two things into one picture, each in its place: on the left a box, on
 * the right a mask of any shape. Nothing is fused for it.
 *
 *     deno run -P=local examples/regions.ts
 *     deno run -P=local examples/regions.ts \
 *       out/examples/bobo.safetensors out/examples/dash.safetensors
 *
 * Without files both things are ordinary words; with two concepts, each is
 * active inside its own region only.
 *
 * @module
 */
import {
  encodePng,
  generate,
  key,
  loadConcept,
  loadModel,
  regionAdapters,
  regionalSampling,
  selectBackend,
  type Shape,
} from "@mix-of-show/mix-of-show";

const files = Deno.args;
if (files.length !== 0 && files.length !== 2) {
  throw new Error(
    `Cannot draw two regions: expected no concept file or two, got ${files.length}`,
  );
}
await selectBackend("auto");
const model = await loadModel(new URL("../models/micro", import.meta.url));

/** A disc on the right, as a mask; a PNG through `greyOf` is one, too. */
const [width, height] = [96, 64];
const disc = Float32Array.from({ length: width * height }, (_, i) => {
  const [x, y] = [i % width + 0.5, Math.floor(i / width) + 0.5];
  return Math.hypot(x - 70, y - 32) < 22 ? 1 : 0;
});
const places: Shape[] = [
  { box: { top: 0.15, left: 0, bottom: 0.85, right: 0.45 } },
  { mask: { width, height, values: disc } },
];

const common = { key: key(1), guidance: 5, width, height };
const save = async (
  name: string,
  [picture]: Awaited<ReturnType<typeof generate>>,
) => {
  await Deno.mkdir("out/examples", { recursive: true });
  await Deno.writeFile(`out/examples/${name}.png`, encodePng(picture));
  console.log(`out/examples/${name}.png`);
};

if (files.length === 0) {
  const prompt = "a fox on the left and a car on the right on snow";
  await save("plain", await generate(model, { ...common, prompts: [prompt] }));
  const words = ["a fox on snow", "a car on snow"];
  const regional = regionalSampling(
    model,
    places.map((shape, i) => ({
      shape,
      prompt: words[i],
      // The other one stays out.
      negative: words[1 - i],
    })),
    // Soft edges; other settings are start, end and replaceRatio.
    { feather: 0.03 },
  );
  await save(
    "regions",
    await generate(model, {
      ...common,
      prompts: ["snow"],
      unet: (call) => regional.unet(call),
    }),
  );
  regional.dispose();
} else {
  const sampling = regionAdapters(
    model,
    await Promise.all(places.map(async (shape, i) => {
      const concept = await loadConcept(files[i], model);
      return { shape, prompt: `a ${concept.phrase}`, concepts: [concept] };
    })),
  );
  await save(
    "regions",
    await generate(sampling.model, {
      ...common,
      prompts: ["snow"],
      ...sampling.pipeline,
    }),
  );
  sampling.dispose();
}
