import { assert, assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { boxAlignment } from "../../src/experiments/boxes.ts";
import { planOf } from "../../src/experiments/experiment.ts";
import { fig10, fig10Table } from "../../src/experiments/fig10.ts";
import { PRESETS } from "../../src/experiments/presets.ts";
import { DEVELOPMENT_CONCEPTS } from "../../src/experiments/subjects.ts";
import { withLab } from "../../src/lab/lab.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

const { ablation } = PRESETS;
const settings = {
  ...ablation,
  rank: 1,
  train: { ...ablation.train, steps: 2, batch: 1 },
  sampling: { ...ablation.sampling, steps: 1 },
  gradient: { ...ablation.gradient, steps: 1, images: 2 },
};
const concepts = DEVELOPMENT_CONCEPTS.slice(0, 2);

Deno.test("fig10: leakage, sides and pixels on a tiny world", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const options = { model, clip, store: `${folder}/store`, workers: 0 };
    await withLab({ ...options, backend: "wasm" }, async (lab) => {
      // No model draws 65 pixels; that is told before anything is trained.
      await assertRejects(
        () =>
          fig10.run(lab, planOf(fig10, { settings, concepts, sizes: [65] })),
        Error,
        "Cannot draw pictures: expected sides that are multiples of",
      );
      assertEquals(lab.seconds, {});
      const plan = planOf(fig10, {
        ...{ settings, concepts, sides: [0.4, 0.9], sizes: [64, 96] },
        pictures: 1,
      });
      const { data, report } = await fig10.run(lab, plan);
      assertEquals(
        data.rows.map(({ limit, value }) => `${limit} ${value}`),
        [
          ...["leakage plain", "leakage negative", "side 0.4", "side 0.9"],
          ...["pixels 64", "pixels 96"],
        ],
      );
      const [plain, negative, small, large, again, sharper] = data.rows;
      assert(plain.own !== negative.own && plain.own !== plain.other);
      assert(small.own !== large.own && again.own !== sharper.own);
      // The smallest region in the smallest picture is one layout.
      assertEquals(again.own, small.own);
      assertEquals(small.other, null);
      assertEquals(fig10Table(data).rows.length, 6);
      assertEquals(report.parts.length, 4);
      // A box is scored by what is in it: two boxes, two concepts.
      const image = await lab.put("black", () => ({
        ...{ width: 64, height: 64, channels: 3 },
        data: new Uint8Array(64 * 64 * 3),
      }));
      const all = { top: 0, left: 0, bottom: 1, right: 1 };
      const sets = concepts.map((concept) => ({
        references: { of: "art" as const, concept, set: "reference" as const },
      }));
      const [row, same] = await boxAlignment(lab, [image], [all, all], sets);
      assertEquals(row, same);
      assertEquals(row.length, 2);
      await assertRejects(
        () => fig10.run(lab, { ...plan, concepts: [concepts[0]] }),
        Error,
        "at least two",
      );
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
