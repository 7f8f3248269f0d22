/** A loss that is not finite stops the run; the last good state stays. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { disposeConcept } from "../../src/customize/concept.ts";
import { encodeData } from "../../src/customize/dataset.ts";
import { method, startConcept } from "../../src/customize/methods.ts";
import { customize, loadTrainState } from "../../src/customize/train.ts";
import { disposeModel } from "../../src/models/model.ts";
import { disposeTensors } from "../../src/optim/adamw.ts";
import { tinySd } from "./tiny_sd.ts";

Deno.test("a loss that is not finite names its step; the last good state stays", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  const folder = await Deno.makeTempDir();
  const checkpoint = `${folder}/rex.state.safetensors`;
  // Each step is larger than the one before: soon there are no such numbers.
  const { train } = method("ed-lora", "paper", {
    ...{ steps: 6, batch: 1, schedule: "constant", weightDecay: 0 },
    lr: { embedding: 0, textEncoder: 0, unet: 1e30 },
  });
  const start = await startConcept(model, method("ed-lora"), {
    ...{ name: "rex", classWord: "cat", key: key(1) },
  });
  const data = Uint8Array.from({ length: 3072 }, (_, i) => i * 7 % 256);
  const pixels = { width: 32, height: 32, channels: 3 as const, data };
  const pictures = await encodeData(model, [{ pixels, captions: ["a {}"] }]);
  const seen: number[] = [];
  try {
    const error = await assertRejects(
      () =>
        customize(model, start, pictures, train, {
          checkpoint,
          every: 1,
          onRecord: ({ step, loss }) => {
            assert(Number.isFinite(loss));
            seen.push(step);
          },
        }),
      Error,
      "finite",
    );
    const at = Number(/step (\d+)/.exec(error.message)?.[1]);
    assert(at >= 1 && at < 6, error.message);
    const state = (await loadTrainState(checkpoint))!;
    // Every step whose record came is in the file.
    assertEquals(state.step, seen.at(-1)! + 1);
    for (const [name, tensor] of state.params) {
      assert((await tensor.data()).every(Number.isFinite), name);
    }
    disposeTensors(state.params, state.adam.m, state.adam.v);
  } finally {
    disposeConcept(start);
    disposeModel(model);
    await Deno.remove(folder, { recursive: true });
  }
});
