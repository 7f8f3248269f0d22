import { assertEquals } from "@std/assert";
import { key } from "../../src/core/random.ts";
import { conceptTensors, disposeConcept } from "../../src/customize/concept.ts";
import { method, METHODS, startConcept } from "../../src/customize/methods.ts";
import { loadConcept, saveConcept } from "../../src/formats/concept_file.ts";
import { openSafetensors } from "../../src/io/safetensors.ts";
import { disposeModel } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { close, fixturePath, forEachBackend, noLeak } from "../helpers.ts";

const OFFICIAL = "lora/edlora_official.safetensors";

forEachBackend("a concept survives its file, metadata included", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const folder = await Deno.makeTempDir();
    const path = `${folder}/toy.safetensors`;
    try {
      for (const name of METHODS) {
        const concept = await startConcept(model, method(name), {
          name: "toy",
          classWord: "cat",
          key: key(2),
          rank: 2,
        });
        await saveConcept(path, concept, model);
        const again = await loadConcept(path, model);
        assertEquals(again.name, "toy");
        assertEquals(again.classWord, "cat");
        assertEquals(again.phrase, concept.phrase);
        assertEquals(again.meta, concept.meta);
        const expected = conceptTensors(concept);
        const actual = conceptTensors(again);
        assertEquals([...actual.keys()].sort(), [...expected.keys()].sort());
        for (const [key, tensor] of actual) {
          close(await tensor.data(), await expected.get(key)!.data(), 0, key);
        }
        [concept, again].forEach(disposeConcept);
      }
      // The peer's own file: names from the keys, order by number.
      const theirs = await loadConcept(fixturePath(OFFICIAL), model);
      assertEquals(theirs.phrase, "<potter1> <potter2>");
      assertEquals(theirs.name, "edlora_official");
      await saveConcept(path, theirs, model, { dtype: "F16" });
      const [a, b] = await Promise.all([
        openSafetensors(path),
        openSafetensors(fixturePath(OFFICIAL)),
      ]);
      assertEquals([...a.entries.keys()].sort(), [...b.entries.keys()].sort());
      for (const key of b.entries.keys()) {
        assertEquals((await a.read(key)).data, (await b.read(key)).data, key);
      }
      a.close();
      b.close();
      disposeConcept(theirs);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
    disposeModel(model);
  });
}, ["wasm"]);
