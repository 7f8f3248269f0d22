import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { evaluateCommand } from "../../src/cli/evaluate.ts";
import { measureHeldOut } from "../../src/cli/heldout.ts";
import { readEvaluatorSet } from "../../src/cli/test_evaluator.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { disposeConcept } from "../../src/customize/concept.ts";
import { method, startConcept } from "../../src/customize/methods.ts";
import { saveConcept } from "../../src/formats/concept_file.ts";
import { weightFusion } from "../../src/fusion/weight.ts";
import { encodePng } from "../../src/io/png.ts";
import { disposeModel, saveModel } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { fixturePath } from "../helpers.ts";

/** Writes a few pictures, their captions and masks. */
async function photos(folder: string, side: number): Promise<void> {
  await Deno.mkdir(`${folder}/masks`, { recursive: true });
  for (let i = 0; i < 2; i++) {
    const data = Uint8Array.from(
      { length: side * side * 3 },
      (_, p) => (p * (7 + 11 * i)) % 256,
    );
    const mask = Uint8Array.from(
      { length: side * side },
      (_, p) => p % side < side / 2 ? 255 : 0,
    );
    const size = { width: side, height: side };
    await Deno.writeFile(
      `${folder}/${i}.png`,
      encodePng({ ...size, channels: 3, data }),
    );
    await Deno.writeFile(
      `${folder}/masks/${i}.png`,
      encodePng({ ...size, channels: 1, data: mask }),
    );
    await Deno.writeTextFile(`${folder}/${i}.txt`, "a photo of a {}\n");
  }
}

Deno.test("held-out errors of the class word, a concept and a fused model", async () => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  const base = await tinySd();
  try {
    await photos(`${folder}/more`, 64);
    const concept = await startConcept(base, method("ed-lora"), {
      name: "rex",
      classWord: "dog",
      key: key(1),
    });
    const path = `${folder}/rex.safetensors`;
    await saveConcept(path, concept, base);
    const fused = weightFusion(base, [concept], { lambda: 1 });
    await saveModel(`${folder}/fused`, fused);
    const words = concept.phrase;
    disposeModel(fused, base);
    disposeConcept(concept);
    const report = await measureHeldOut({
      heldout: `${folder}/more`,
      model: fixturePath("tiny-sd"),
      concept: { path },
      fused: `${folder}/fused`,
      json: true,
      backend: "wasm",
    });
    assertEquals(report.pictures, 2);
    assertEquals(Object.keys(report.arms), ["class word", "single", "fused"]);
    const { "class word": far, single, fused: arm } = report.arms;
    assertEquals([far.words, single.words], ["dog", words]);
    // One concept's sum with λ = 1 is the concept.
    assertAlmostEquals(arm.mean, single.mean, 1e-4 * single.mean);
    assert(single.mean !== far.mean);
    assertEquals(far.byTimestep.length, 7);
    assertAlmostEquals(report.gain!, (far.mean - single.mean) / far.mean, 1e-9);
    // A caption that does not call the concept says nothing of it.
    await Deno.writeTextFile(`${folder}/more/1.txt`, "a photo of a dog\n");
    await assertRejects(
      () =>
        measureHeldOut({
          heldout: `${folder}/more`,
          model: fixturePath("tiny-sd"),
          concept: { path },
          json: true,
          backend: "wasm",
        }),
      Error,
      "in the concept's place, got a photo of a dog",
    );
  } finally {
    disposeModel(base);
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("users' references are a concept, or a folder each", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await photos(`${folder}/all/rex`, 64);
    await photos(`${folder}/all/tom`, 64);
    const two = await readEvaluatorSet(`${folder}/all`);
    assertEquals(two.identities.map(({ name }) => name), ["rex", "tom"]);
    const one = await readEvaluatorSet(
      `${folder}/all/rex`,
      `${folder}/all/tom`,
    );
    assertEquals(one.identities.length, 1);
    assertEquals(one.identities[0].references.length, 2);
    assertEquals(one.lookAlikes[0].gallery.length, 2);
    await Deno.remove(`${folder}/all/rex/masks/1.png`);
    await assertRejects(
      () => readEvaluatorSet(`${folder}/all/rex`),
      Error,
      "masks/NAME.png for each picture, got none for picture 1",
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("evaluate refuses options of another use", () => {
  const bad: [string[], string][] = [
    [[], "one of --images, --heldout and --test-evaluator"],
    [["--images", "a", "--heldout", "b"], "got --images and --heldout"],
    [["--images", "a", "--concept", "b"], "--heldout with --concept"],
    [["--heldout", "a", "--concept", "b", "--clip", "c"], "with --clip"],
    [["--heldout", "a"], "--concept or --fused"],
    [["--test-evaluator", "--regions"], "--images with --regions"],
    [["--test-evaluator", "--class-pictures", "a"], "--references with"],
  ];
  for (const [args, message] of bad) {
    assertThrows(() => evaluateCommand.parse(args), Error, message);
  }
});
