import { assert, assertEquals, assertThrows } from "@std/assert";
import { parameterCount } from "../../src/core/tree.ts";
import { assertFits, drawingMemory } from "../../src/diffusion/memory.ts";
import { generate } from "../../src/diffusion/pipeline.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import { assertTextToImage, specialPurpose } from "../../src/models/purpose.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { forEachBackend } from "../helpers.ts";

forEachBackend("sizes beyond the memory are refused with the sum", async () => {
  const model = await tinySd();
  const weights = 4 *
    [model.textEncoder, model.unet, model.autoencoder].reduce(
      (sum, { params }) => sum + parameterCount(params),
      0,
    );
  const [last, below] = model.autoencoder.config.block_out_channels;
  const { bytes, arithmetic } = drawingMemory(model, 1024, 512);
  assertEquals(bytes, weights + 4 * (2 * below + last) * 1024 * 512);
  assert(arithmetic.includes(`${2 * below + last} channels × 1024 × 512`));
  assertFits(model, 64, 64);
  assertThrows(
    () => assertFits(model, 20480, 20480),
    Error,
    "Cannot draw 20480×20480 pixels: expected a size that needs at most 4.3 GB",
  );
  let message = "";
  await generate(model, { prompts: ["a"], height: 20480, width: 20480 })
    .catch((error: Error) => message = error.message);
  assert(message.startsWith("Cannot draw 20480×20480 pixels"), message);
  disposeModel(model);
}, ["wasm"]);

forEachBackend("a UNet for something else is named before work", async () => {
  assertEquals(specialPurpose(4, 4), undefined);
  for (
    const [inputs, name] of [
      [9, "inpainting (9 input channels"],
      [8, "editing by instructions"],
      [5, "depth to image"],
      [7, "upscaling"],
      [16, "something else"],
    ] as const
  ) assert(specialPurpose(inputs, 4)!.startsWith(name), name);
  const model = await tinySd();
  assertTextToImage(model, "sample");
  const inpainting: Model = {
    ...model,
    unet: { ...model.unet, config: { ...model.unet.config, in_channels: 9 } },
  };
  let message = "";
  await generate(inpainting, { prompts: ["a"] })
    .catch((error: Error) => message = error.message);
  assertEquals(
    message,
    "Cannot sample: expected a model for text to image, got one for inpainting " +
      "(9 input channels: latent, mask, masked latent)",
  );
  disposeModel(model);
}, ["wasm"]);
