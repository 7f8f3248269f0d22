/**
 * A runner that computes nothing: every number of a result comes from the hash
 * of its spec. Whatever changes what a lab is asked for changes all that an
 * experiment makes of it; `fields_test.ts` shows that a spec's fields change what
 * the real runner gives.
 *
 * @module
 */
import { fold, key, uniform } from "../../src/core/random.ts";
import { CORRUPTIONS } from "../../src/evaluation/corruptions.ts";
import { HELDOUT_TIMESTEPS } from "../../src/evaluation/heldout.ts";
import { writeAtomic, writeJson } from "../../src/io/files.ts";
import { encodePng } from "../../src/io/png.ts";
import type { Runner } from "../../src/lab/runner.ts";
import type { LabSpec } from "../../src/lab/specs.ts";
import { imageIds, pathOf, specId, writeVectors } from "../../src/lab/store.ts";

/** Files that every trained concept and fused model is a copy of. */
export interface Pretended {
  readonly concept: Uint8Array;
  readonly fused: Uint8Array;
}

const NOTHING: Pretended = {
  concept: new Uint8Array(1),
  fused: new Uint8Array(1),
};

/** Side of a picture; reports cut columns out of it. */
const SIDE = 48;

/** Numbers from 0 to 1 that a name decides. */
function numbers(count: number, ...name: readonly string[]): number[] {
  return [...uniform(fold(key(0), ...name), count)];
}

/** A unit vector without negative parts: alignments stay above 0. */
function vector(...name: readonly string[]): Float32Array {
  const values = numbers(8, ...name);
  const norm = Math.hypot(...values);
  return Float32Array.from(values, (value) => value / norm);
}

/**
 * Writes results at once, and says what it was handed.
 *
 * @param store Folder of the store.
 * @param files What stands for concepts and fused models. @default one byte
 */
export function pretender(
  store: string,
  files: Pretended = NOTHING,
): Runner & { readonly specs: LabSpec[] } {
  const specs: LabSpec[] = [];
  return {
    workers: 1,
    specs,
    async run(spec, tell) {
      specs.push(spec);
      await Promise.resolve();
      tell(1, 2);
      await pretend(store, spec, files);
    },
    [Symbol.dispose]: () => {},
  };
}

async function pretend(
  store: string,
  spec: LabSpec,
  files: Pretended,
): Promise<void> {
  const id = await specId(spec);
  const [a, b, c] = numbers(3, id);
  const vectors = pathOf.embedding(store, id);
  switch (spec.kind) {
    case "train":
      await writeAtomic(pathOf.concept(store, id), files.concept);
      return await writeJson(pathOf.trainLog(store, id), {
        ...{ concept: spec.concept, phrase: `<${spec.concept}>` },
        ...{ method: spec.method, steps: spec.config.steps },
        ...{ losses: [a, b], seconds: c },
      });
    case "fuse": {
      const stages = ["textEncoder", "kv", "spatial"];
      const layer = { layer: id, rows: 2, features: 3 };
      await writeAtomic(pathOf.fused(store, id), files.fused);
      return await writeJson(pathOf.fuseLog(store, id), {
        ...{ concepts: spec.concepts, seconds: a, rounds: [b, c] },
        layers: stages.map((stage) => (
          { ...layer, stage, before: a, after: b, average: c }
        )),
      });
    }
    case "publish":
      await writeAtomic(pathOf.published(store, id), files.concept);
      return await writeJson(pathOf.publishLog(store, id), {
        ...{ seconds: a, bytes: b, conceptBytes: c },
      });
    case "draw":
    case "compose":
      for (const name of await imageIds(spec)) {
        const shades = numbers(3, name).map((x) => 255 * x);
        const data = Uint8Array.from(
          { length: SIDE * SIDE * 3 },
          (_, i) => shades[i % 3],
        );
        const pixels = { width: SIDE, height: SIDE, channels: 3, data };
        await writeAtomic(pathOf.image(store, name), encodePng(pixels));
      }
      return;
    case "embed":
      return await writeVectors(vectors, [
        ["whole", spec.images.map((image) => vector(spec.clip, image))],
        ...spec.regions.flatMap((own, i) =>
          own.map((_, r): [string, Float32Array[]] => [
            `${i}.${r}`,
            [vector(spec.clip, spec.images[i], `${r}`)],
          ])
        ),
      ]);
    case "references":
      return await writeVectors(vectors, [
        ["whole", [vector(id, "0"), vector(id, "1")]],
        ["masked", [vector(id, "2"), vector(id, "3")]],
      ]);
    case "texts":
      return await writeVectors(vectors, [
        ["texts", spec.texts.map((text) => vector(spec.clip, text))],
      ]);
    case "heldout":
      return await writeJson(pathOf.heldout(store, id), {
        mean: a,
        byTimestep: numbers(HELDOUT_TIMESTEPS.length, id, "timesteps"),
        byPicture: [b, c],
      });
    case "evaluator": {
      const of = (what: string) =>
        Object.fromEntries(
          numbers(CORRUPTIONS.length, id, what)
            .map((value, i) => [CORRUPTIONS[i], value]),
        );
      return await writeJson(pathOf.evaluator(store, id), {
        ...{ same: a, nearest: b, classWord: c, drawn: true },
        ...{ spoilt: of("spoilt"), loses: of("loses") },
        ...{ nearestNeighbour: 1, mistakes: [], failures: [] },
      });
    }
  }
}
