import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import { leaves } from "../../src/core/tree.ts";
import { disposeConcept } from "../../src/customize/concept.ts";
import { loadConcept, saveConcept } from "../../src/formats/concept_file.ts";
import { conceptStatistics } from "../../src/fusion/features.ts";
import { fuse } from "../../src/fusion/gradient.ts";
import {
  gramOf,
  noisyStatistics,
  type Stats,
} from "../../src/fusion/statistics.ts";
import { weightFusion } from "../../src/fusion/weight.ts";
import {
  averagePublished,
  fusePublished,
  publish,
  type Published,
  readPublished,
} from "../../src/lab/published.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import {
  gram,
  matrix,
  meanDiagonal,
  symmetricEigen,
} from "../../src/optim/least_squares.ts";
import { finish, fusionFixture } from "../fusion/concepts.ts";
import { close, forEachBackend } from "../helpers.ts";

/** Every parameter that differs from the base's. */
async function changed(
  model: Model,
  base: Model,
): Promise<Map<string, Float32Array>> {
  const found = new Map<string, Float32Array>();
  for (const component of ["textEncoder", "unet"] as const) {
    const old = new Map(leaves(base[component].params));
    for (const [path, leaf] of leaves(model[component].params)) {
      if (old.get(path) === leaf) continue;
      found.set(
        `${component}.${path}`,
        (await leaf.data() as Float32Array).slice(),
      );
    }
  }
  return found;
}

forEachBackend("the centre fuses from published files alone", async () => {
  const f = await fusionFixture();
  const folder = await Deno.makeTempDir();
  const concepts = f.concepts.slice(0, 2);
  const before = tf.memory().numTensors;
  const clients: Published[] = [];
  for (const [i, concept] of concepts.entries()) {
    const statistics = await finish(
      conceptStatistics(f.base, concept, { steps: 1, key: key(1) }),
    );
    clients.push({ concept, statistics, pictures: [6, 2][i] });
  }
  const read: Published[] = [];
  for (const [i, client] of clients.entries()) {
    const path = `${folder}/${i}.safetensors`;
    await publish(path, f.base, client);
    read.push(await readPublished(path, f.base));
  }
  assertEquals(read.map(({ pictures }) => pictures), [6, 2]);
  // Equal to fusing the models with what was measured on them, bit for bit.
  const centre = await finish(fusePublished(f.base, read));
  const models = await finish(
    fuse(f.base, concepts, {
      statistics: clients.map(({ statistics }) => statistics),
    }),
  );
  const [fromFiles, fromModels] = [
    await changed(centre, f.base),
    await changed(models, f.base),
  ];
  assert(fromFiles.size > 50);
  assertEquals(fromFiles, fromModels);
  // FedAvg's weights are the shares of pictures: 3/4 and 1/4.
  const average = await averagePublished(f.base, read);
  const byHand = weightFusion(f.base, concepts, {
    lambda: 1,
    strengths: [3 / 4, 1 / 4].map((a) => ({ unet: a, textEncoder: a })),
  });
  const expected = await changed(byHand, f.base);
  for (const [name, values] of await changed(average, f.base)) {
    close(values, expected.get(name)!, 1e-6, name);
  }
  // The file is a concept file too, and a concept file is no contribution.
  const plain = await loadConcept(`${folder}/0.safetensors`, f.base);
  assertEquals(plain.phrase, concepts[0].phrase);
  await saveConcept(`${folder}/plain.safetensors`, plain, f.base);
  await assertRejects(
    () => readPublished(`${folder}/plain.safetensors`, f.base),
    Error,
    "a concept with statistics",
  );
  await assertRejects(
    () => publish(`${folder}/x`, f.base, { ...clients[0], pictures: 0 }),
    Error,
    "at least one picture",
  );
  // Noise changes what is fused, and no row is left in the file.
  const noise = { scale: 0.1, key: key(5) };
  await publish(`${folder}/n.safetensors`, f.base, clients[0], { noise });
  const hidden = await readPublished(`${folder}/n.safetensors`, f.base);
  for (const stats of hidden.statistics.unet.values()) {
    assert([stats, ...stats.halves ?? []].every(({ rows }) => !rows));
  }
  const noised = await finish(fusePublished(f.base, [hidden, read[1]]));
  const other = await changed(noised, f.base);
  const path = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
  const [a, b] = [fromFiles, other].map((m) => m.get(`${path}.weight`)!);
  assert(a.some((w, i) => w !== b[i]));
  for (const model of [centre, models, average, byHand, noised]) {
    disposeModel(model, f.base);
  }
  [...read.map(({ concept }) => concept), plain, hidden.concept]
    .forEach(disposeConcept);
  assertEquals(tf.memory().numTensors, before);
  await Deno.remove(folder, { recursive: true });
  f.dispose();
}, ["wasm"]);

Deno.test("noise on statistics has the stated scale", () => {
  const [n, d] = [400, 40];
  const rows = matrix(n, d, normal(key(1), n * d));
  const own: Stats = { features: d, count: n, rows };
  const stats = new Map([["a", own], ["b", own]]);
  const same = noisyStatistics(stats, { scale: 0, key: key(2) });
  assertEquals(same.get("a")!.gram!.data, gram(rows).data);
  assertEquals(same.get("a"), same.get("b"), "shared inputs stay shared");
  assertEquals(same.get("a")!.rows, undefined);
  const noisy = noisyStatistics(stats, { scale: 0.5, key: key(2) });
  const sum = gramOf(own);
  // One typical row adds ‖x‖² ≈ 40 to the trace; 820 draws are known to 3 %.
  const typical = meanDiagonal(sum) * d / n;
  const { gram: other } = noisy.get("a")!;
  let square = 0;
  for (let i = 0; i < d; i++) {
    for (let j = i; j < d; j++) {
      square += (other!.data[i * d + j] - sum.data[i * d + j]) ** 2;
    }
  }
  const deviation = Math.sqrt(square / (d * (d + 1) / 2));
  close(deviation / (0.5 * typical), 1, 0.1);
  // So much noise that the sum alone would be indefinite: it is moved back.
  const loud = noisyStatistics(stats, { scale: 20, key: key(2) });
  const { values } = symmetricEigen(loud.get("a")!.gram!);
  assert(values.every((v) => v > -1e-6 * values.at(-1)!));
  assertThrows(
    () => noisyStatistics(stats, { scale: -1, key: key(2) }),
    Error,
    "a scale ≥ 0",
  );
});
