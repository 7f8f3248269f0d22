import * as tf from "@tensorflow/tfjs";
import { assertThrows } from "@std/assert";
import { disposeTree } from "../../src/core/tree.ts";
import { openSafetensors } from "../../src/io/safetensors.ts";
import { load } from "../../src/models/checkpoint.ts";
import { parseClipConfig } from "../../src/models/config.ts";
import {
  type Clip,
  clipSpec,
  imageEmbedding,
  normalise,
  visionModel,
} from "../../src/models/image_encoder.ts";
import { golden } from "../customize/tiny_sd.ts";
import {
  close,
  fixtureJson,
  fixturePath,
  forEachBackend,
  noLeak,
  tolerance,
} from "../helpers.ts";

// fixtures/clip, from transformers' CLIPModel: the picture's half of it. The
// text tower is that of tests/verify/verify_test.ts (text_encoder, variants/sd2).
forEachBackend("CLIP's picture tower matches transformers", async (backend) => {
  await noLeak(async () => {
    const config = parseClipConfig(await fixtureJson("clip/config.json"));
    const { vision_model, visual_projection } = clipSpec(config);
    const file = await openSafetensors(fixturePath("clip/vision.safetensors"));
    const params = await load<Pick<Clip, "vision_model" | "visual_projection">>(
      { vision_model, visual_projection },
      file,
    );
    file.close();
    const g = await golden("clip/vision_expected.safetensors");
    const pixels = g.nhwc("pixel_values");
    const outputs = tf.tidy(() => {
      const vision = visionModel(
        params.vision_model,
        config.vision_config,
        pixels,
      );
      const image = imageEmbedding(params as Clip, config, pixels);
      return {
        vision_embeddings_pre_ln: vision.embeddings,
        vision_last_hidden_state: vision.last,
        vision_pooler_output: vision.pooled,
        image_embeds: image,
        image_embeds_normalised: normalise(image),
      };
    });
    for (const [name, actual] of Object.entries(outputs)) {
      // float32 of numbers of size 1 through a few layers; the peers' own
      // implementations differ by 1e-6.
      close(
        await actual.data(),
        g.values(name),
        tolerance(backend, 1e-5),
        name,
      );
      actual.dispose();
    }
    const small = tf.zeros([1, 16, 32, 3]) as tf.Tensor4D;
    assertThrows(
      () => visionModel(params.vision_model, config.vision_config, small),
      Error,
      "expected 32×32 pixels, got 16×32",
    );
    small.dispose();
    g.dispose();
    disposeTree(params);
  });
});
