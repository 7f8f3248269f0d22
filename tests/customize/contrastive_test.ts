import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import { wordsIn } from "../../src/customize/attention_fusion.ts";
import { runSolo, type Solo, solos } from "../../src/customize/composition.ts";
import { type Concept, disposeConcept } from "../../src/customize/concept.ts";
import { clora, contrastiveLoss } from "../../src/customize/contrastive.ts";
import { promptRows } from "../../src/diffusion/regions.ts";
import { bindPrompt, disposeModel } from "../../src/models/model.ts";
import { attentionGrids } from "../../src/models/unet.ts";
import { close, forEachBackend, noLeak } from "../helpers.ts";
import {
  changedConcept as concept,
  drawnAttached,
  drawnWith,
  tinySd,
} from "./tiny_sd.ts";

/** Three networks run three times per call: small pictures. */
const SMALL = { steps: 2, height: 32, width: 32 };

/** NT-Xent on plain numbers, a pair after another. */
function plainLoss(
  maps: number[][],
  of: number[],
  temperature: number,
): number {
  const units = maps.map((map) => {
    const [low, high] = [Math.min(...map), Math.max(...map)];
    const scaled = map.map((v) => (v - low) / (high - low + 1e-6));
    const norm = Math.hypot(...scaled);
    return scaled.map((v) => v / (norm + 1e-6));
  });
  const similar = (a: number, b: number) =>
    units[a].reduce((sum, v, i) => sum + v * units[b][i], 0) / temperature;
  const losses: number[] = [];
  for (const a of of.keys()) {
    for (const b of of.keys()) {
      if (a === b || of[a] !== of[b]) continue;
      const positive = Math.exp(similar(a, b));
      let all = positive;
      for (const c of of.keys()) {
        if (of[c] !== of[a]) all += Math.exp(similar(a, c));
      }
      losses.push(-Math.log(positive / all));
    }
  }
  return losses.reduce((x, y) => x + y, 0) / Math.max(1, losses.length);
}

forEachBackend(
  "contrastiveLoss is NT-Xent over pairs of a concept, summed over pictures",
  async () => {
    const of = [0, 0, 1, 1, 1, 2];
    const values = normal(key(1), 2 * of.length * 9);
    const map = (
      picture: number,
      i: number,
    ) => [...values.subarray((picture * of.length + i) * 9).subarray(0, 9)];
    await noLeak(async () => {
      const maps = tf.tensor3d(values, [2, of.length, 9]);
      const loss = contrastiveLoss(maps, of, 0.5);
      const expected = [0, 1].map((picture) =>
        plainLoss(of.map((_, i) => map(picture, i)), of, 0.5)
      );
      close(await loss.data(), [expected[0] + expected[1]], 2e-4);
      // Nothing to compare: no loss, and no pair to divide by.
      const alone = contrastiveLoss(maps, [0, 1, 2, 3, 4, 5], 0.5);
      assertEquals((await alone.data())[0], 0);
      tf.dispose([maps, loss, alone]);
    });
  },
);

forEachBackend(
  "CLoRA moves latents down the slope of the readings' loss",
  async () => {
    await noLeak(async () => {
      const base = await tinySd();
      const [fox, owl] = [
        await concept(base, "fox"),
        await concept(base, "owl"),
      ];
      const prompt = `${fox.phrase} and ${owl.phrase}`;
      const size = [1, 8, 8, base.unet.config.in_channels] as const;
      const latent = tf.tensor4d(normal(key(2), 64 * size[3]), [...size]);
      const call = { index: 0, total: 4, timestep: 500, first: 0, count: 1 };
      const stepSize = 2;
      const sampling = clora(base, [fox, owl], { prompt, stepSize });
      const moved = tf.tidy(() => sampling.pipeline.adjust!(latent, call));
      const gradient = tf.tidy(() => latent.sub(moved).div(stepSize));
      sampling.dispose();

      // The loss again: three prompts written out, attention picked by hand.
      assertEquals(fox.classWord, owl.classWord);
      const texts = [
        `${fox.classWord} and ${owl.classWord}`,
        `${fox.phrase} and ${owl.classWord}`,
        `${fox.classWord} and ${owl.phrase}`,
      ];
      const { named, all, dispose } = solos(
        base,
        [fox, owl],
        { prompt },
        (one) => one === fox ? texts[1] : texts[2],
      );
      const rows = promptRows(named, texts[0], "", {});
      const readings: Solo[] = [{ model: named, rows }, ...all];
      const finest = attentionGrids(base.unet.config, { height: 8, width: 8 })
        .reduce((a, b) => b.height > a.height ? b : a);
      const positions = (i: number, one: Concept) => {
        const own = wordsIn(named, one, texts[i]);
        if (own.length > 0) return own;
        const [word] = named.tokenizer.tokenize(one.classWord);
        const { rows: [ids] } = bindPrompt(named, texts[i]);
        // Both are called by the same word: the owl by its second.
        return [one === fox ? ids.indexOf(word) : ids.lastIndexOf(word)];
      };
      const lossAt = async (x: tf.Tensor4D) => {
        const maps: number[][] = [];
        const of: number[] = [];
        for (const [i, reading] of readings.entries()) {
          const seen: tf.Tensor4D[] = [];
          const crossAttend = ({ height }: { height: number }) =>
            height !== finest.height ? undefined : {
              probabilities: (p: tf.Tensor4D) =>
                void seen.push(tf.keep(p.clone())),
            };
          tf.tidy(() =>
            void runSolo(
              reading,
              { sample: x, timestep: 500, count: 1, branch: "conditional" },
              { crossAttend },
            )
          );
          const layers = await Promise.all(seen.map((p) => p.array()));
          tf.dispose(seen);
          for (const [c, one] of [fox, owl].entries()) {
            for (const token of positions(i, one)) {
              of.push(c);
              maps.push(
                layers[0][0][0].map((_, place) =>
                  layers.reduce(
                    (sum, [heads]) =>
                      sum + heads.reduce((a, h) => a + h[place][token], 0) /
                        heads.length,
                    0,
                  )
                ),
              );
            }
          }
        }
        return plainLoss(maps, of, 0.5);
      };
      const norm = Math.hypot(...await gradient.data());
      assert(norm > 0);
      const at = async (distance: number) => {
        const x = tf.tidy(() =>
          latent.add(gradient.mul(distance / norm)) as tf.Tensor4D
        );
        const loss = await lossAt(x);
        x.dispose();
        return loss;
      };
      const step = 0.02;
      const slope = (await at(step) - await at(-step)) / (2 * step);
      assert(
        Math.abs(slope - norm) < 0.03 * norm,
        `slope ${slope}, gradient ${norm}`,
      );
      rows.dispose();
      dispose();
      tf.dispose([latent, moved, gradient]);
      [fox, owl].forEach(disposeConcept);
      disposeModel(base);
    });
  },
  ["wasm"],
);

forEachBackend(
  "CLoRA draws each concept inside its mask; every option counts",
  async () => {
    await noLeak(async () => {
      const base = await tinySd();
      const [fox, owl] = [
        await concept(base, "fox"),
        await concept(base, "owl"),
      ];
      const prompt = `${fox.phrase} and ${owl.phrase}`;
      const draw = (
        concepts: readonly Concept[],
        options: Partial<Parameters<typeof clora>[2]>,
        text = prompt,
      ) =>
        drawnWith(
          clora(base, concepts, { prompt: text, ...options }),
          text,
          SMALL,
        );
      // One concept that has every pixel is that concept, attached.
      const alone = `a ${fox.phrase}`;
      const own = await draw([fox], { threshold: 0, stepSize: 0 }, alone);
      const attached = await drawnAttached(base, [fox], alone, SMALL);
      assert(own.every((v, i) => Math.abs(v - attached[i]) <= 1));
      const pictures = [
        await draw([fox, owl], {}),
        await draw([fox, owl], { stepSize: 0 }),
        await draw([fox, owl], { guided: 2 }),
        await draw([fox, owl], { temperature: 0.1 }),
        await draw([fox, owl], { threshold: 0.9 }),
        await draw([fox, owl], { negative: fox.classWord }),
      ].map((data) => data.join());
      assertEquals(new Set(pictures).size, pictures.length);
      const none = await draw([fox, owl], { guided: 0 });
      assertEquals(none.join(), pictures[1]);
      const refuse = (
        concepts: readonly Concept[],
        options: Parameters<typeof clora>[2],
        message: string,
      ) => assertThrows(() => clora(base, concepts, options), Error, message);
      refuse([], { prompt }, "at least one concept");
      refuse([fox, owl], { prompt: alone }, owl.phrase);
      refuse([fox], { prompt: alone, guided: -1 }, "guided calls");
      refuse([fox], { prompt: alone, stepSize: -1 }, "step size");
      refuse([fox], { prompt: alone, temperature: 0 }, "temperature");
      refuse([fox], { prompt: alone, threshold: 1 }, "threshold");
      [fox, owl].forEach(disposeConcept);
      disposeModel(base);
    });
  },
  ["wasm"],
);
