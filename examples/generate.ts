/**
 * Draws pictures from prompts with the embedded model.
 *
 *     deno run -P=local examples/generate.ts "a flat fox on grass"
 *
 * @module
 */
import {
  encodePng,
  generate,
  key,
  loadModel,
  selectBackend,
} from "@mix-of-show/mix-of-show";

const prompts = Deno.args.length > 0
  ? Deno.args
  : ["a flat fox on grass", "a red glossy car on snow"];

const backend = await selectBackend("auto");
console.log(backend.describe);
const model = await loadModel(new URL("../models/micro", import.meta.url));

const pictures = await generate(model, { prompts, key: key(0), steps: 20 });

await Deno.mkdir("out/examples", { recursive: true });
for (const [i, picture] of pictures.entries()) {
  const path = `out/examples/generate-${i}.png`;
  await Deno.writeFile(path, encodePng(picture));
  console.log(`${path}: ${prompts[i]}`);
}
