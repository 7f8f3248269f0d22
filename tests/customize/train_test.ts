import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { type BackendName, selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import {
  type Concept,
  conceptTensors,
  disposeConcept,
  initConcept,
} from "../../src/customize/concept.ts";
import { loadConcept } from "../../src/formats/concept_file.ts";
import { encodeData, type TrainData } from "../../src/customize/dataset.ts";
import { withTensors } from "../../src/customize/lora.ts";
import { offsetNoise } from "../../src/customize/losses.ts";
import {
  method,
  type MethodName,
  startConcept,
} from "../../src/customize/methods.ts";
import { scaled } from "../../src/customize/scale.ts";
import {
  conceptOf,
  customize,
  groupOf,
  loadTrainState,
  saveTrainState,
  train,
  type TrainBatch,
  type TrainConfig,
  type TrainRecord,
  type TrainState,
} from "../../src/customize/train.ts";
import { drawBatch } from "../../src/customize/train_batch.ts";
import {
  parseSchedulerConfig,
  schedule,
} from "../../src/diffusion/schedule.ts";
import { disposeModel, loadModel, type Model } from "../../src/models/model.ts";
import {
  adamwInit,
  type AdamwState,
  adamwStep,
  disposeTensors,
} from "../../src/optim/adamw.ts";
import {
  close,
  fixtureJson,
  fixturePath,
  forEachBackend,
  inFolder,
  noLeak,
  tolerance,
} from "../helpers.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { golden, tinySd } from "./tiny_sd.ts";
import { ON_ONE_CORE } from "../tools/repository.ts";
import { batchOf, conceptGradients } from "./gradients.ts";
import { withRandomUp } from "./random_up.ts";

interface Facts {
  prompts: string[];
  b_losses: number[];
  b_grad_norms: { unet: number; text_encoder: number; new_concept: number };
  "b.full_identity=False": { attn_reg: number; diffusion_loss: number };
  "b.full_identity=True": { attn_reg: number; diffusion_loss: number };
}

/** Our name of a tensor → the name in the fixture. */
function official(name: string): string {
  return name.replace(/^embedding\./, "new_concept_embedding.")
    .replace(/^textEncoder\./, "text_encoder.")
    .replace(/\.(down|up)$/, ".lora_$1.weight");
}

/** Values of a tensor in PyTorch's layout. */
async function onDisk(name: string, t: tf.Tensor): Promise<Float32Array> {
  if (/^(new_concept_)?embedding\./.test(name)) {
    return await t.data() as Float32Array;
  }
  const turned = tf.transpose(t as tf.Tensor2D);
  const values = await turned.data() as Float32Array;
  turned.dispose();
  return values;
}

/** Compares gradients relative to each tensor's largest. */
function closeRelative(
  actual: Float32Array,
  expected: Float32Array,
  tolerance: number,
  what: string,
): void {
  const largest = expected.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  close(actual, expected, tolerance * largest + 1e-9, what);
}

// README: LoRA gradients float32 against float64 are worst 2.8e-6 of a tensor's
// largest; parameters after five steps 1.8e-6. Times ten.
// Through text encoder and attention maps as well: twice that.
const GRADIENT = 2.8e-5;
const PARAMETER = 1.8e-5;

/** The inputs of the official trainer's forward. */
function batchB(
  facts: Facts,
  g: Awaited<ReturnType<typeof golden>>,
): TrainBatch {
  return {
    latents: g.nhwc("latents"),
    noise: tf.tidy(() =>
      offsetNoise(g.nhwc("noise_base"), 0.01, g.nhwc("noise_offset_randn"))
    ),
    timesteps: g.rows("timesteps")[0],
    prompts: facts.prompts,
    mask: g.nhwc("masks"),
  };
}

const B = method("ed-lora", "official").train;

/**
 * Compares the gradients the fixture has (32 of 202 tensors) one by one, and
 * all of them by the norm of their group.
 */
async function closeGradients(
  grads: ReadonlyMap<string, tf.Tensor>,
  expected: Awaited<ReturnType<typeof golden>>,
  facts: Facts,
  tolerance: number,
): Promise<void> {
  assertEquals(grads.size, 202);
  assertEquals(expected.names.length, 32);
  const squares = { embedding: 0, textEncoder: 0, unet: 0 };
  const values = new Map<string, Float32Array>();
  for (const [name, gradient] of grads) {
    const own = await onDisk(name, gradient);
    values.set(official(name), own);
    for (const v of own) squares[groupOf(name)] += v * v;
  }
  for (const name of expected.names) {
    const theirs = expected.values(name);
    closeRelative(values.get(name)!, theirs, tolerance, name);
  }
  const norms = facts.b_grad_norms;
  for (
    const [group, norm] of [
      ["embedding", norms.new_concept],
      ["textEncoder", norms.text_encoder],
      ["unet", norms.unet],
    ] as const
  ) {
    close(Math.sqrt(squares[group]) / norm, 1, tolerance, `norm of ${group}`);
  }
}

forEachBackend("golden b: the whole official ED-LoRA step", async () => {
  const model = await tinySd();
  const facts = await fixtureJson<Facts>("training/training.json");
  const g = await golden("training/b_inputs.safetensors");
  const grads0 = await golden("training/b_grads_step0_part.safetensors");
  const after = await golden("training/b_delta_after5_part.safetensors");
  const first = await loadConcept(
    fixturePath("lora/edlora_official.safetensors"),
    model,
  );
  const batch = batchB(facts, g);
  const closeLosses = (
    losses: Record<string, number>,
    expected: Facts["b.full_identity=True"],
  ) => {
    close(losses.attention, expected.attn_reg, 1e-6, "regularisation");
    close(losses.diffusion, expected.diffusion_loss, 2e-5, "diffusion");
  };
  const full = await conceptGradients(model, first, batch, {
    ...B,
    attention: { weight: 0.01, fullIdentity: true },
  });
  closeLosses(full.losses, facts["b.full_identity=True"]);
  disposeTensors(full.grads);
  // The five steps of the fixture regularise without full identity.
  const config = {
    ...B,
    attention: { weight: 0.01, fullIdentity: false },
  };
  let concept: Concept = first;
  let state: AdamwState = adamwInit(conceptTensors(first));
  for (let step = 0; step <= 5; step++) {
    const { losses, grads } = await conceptGradients(
      model,
      concept,
      batch,
      config,
    );
    close(losses.total, facts.b_losses[step], 2e-5, `loss ${step}`);
    const params = conceptTensors(concept);
    if (step === 0) {
      closeLosses(losses, facts["b.full_identity=False"]);
      await closeGradients(grads, grads0, facts, 2 * GRADIENT);
    }
    if (step === 5) {
      const named = new Map(
        [...params].map(([name, tensor]) => [official(name), tensor]),
      );
      for (const name of after.names) {
        close(
          await onDisk(name, named.get(name)!),
          after.values(name),
          PARAMETER,
          name,
        );
      }
      break;
    }
    const next = adamwStep(params, grads, state, {
      lr: (name) => B.lr[groupOf(name)],
    });
    const moved: Concept = {
      ...concept,
      adapter: withTensors(concept.adapter, next.params),
      tokens: concept.tokens.map(({ token }) => ({
        token,
        vectors: next.params.get(`embedding.${token}`) as tf.Tensor2D,
      })),
    };
    disposeTensors(grads, state.m, state.v, params);
    concept = moved;
    state = next.state;
  }
  disposeConcept(concept);
  disposeTensors(state.m, state.v);
  batch.noise.dispose();
  [g, grads0, after].forEach((file) => file.dispose());
  disposeModel(model);
}, ["wasm"]);

/** Loss and gradients of a batch, with every part of the official loss. */
async function gradientsOn(
  backend: BackendName,
  folder: string,
  name: MethodName,
): Promise<{ loss: number; grads: Map<string, Float32Array> }> {
  await selectBackend(backend);
  const model = await loadModel(folder);
  const how = method(name, "official");
  const fresh = await startConcept(model, how, {
    ...{ name: "toy", classWord: "dog", key: key(3) },
    overrides: { severalTokens: "mean" },
  });
  // `up` starts at zero, and then `down` has no gradient.
  const concept = {
    ...fresh,
    adapter: withRandomUp(fresh.adapter, key(4), 0.1),
  };
  const batch = batchOf(model, 8, [`photo of a ${concept.phrase}`]);
  const { losses, grads } = await conceptGradients(
    model,
    concept,
    batch,
    how.train,
  );
  assert(losses.attention > 0);
  const values = new Map<string, Float32Array>();
  for (const [path, gradient] of grads) {
    values.set(path, await gradient.data() as Float32Array);
  }
  disposeTensors(grads);
  tf.dispose([batch.latents, batch.noise, batch.mask!]);
  disposeConcept(concept);
  disposeModel(model);
  return { loss: losses.total, grads: values };
}

// Those of wasm are the official ones, above. A software adapter takes half a
// minute for the fixture: most of it are the text states of two prompts, one a
// layer. So all levels of a UNet with one text, and layers with texts of their
// own in the smallest.
forEachBackend("gradients on webgpu are those on wasm", async (backend) => {
  await selectBackend("wasm");
  await inFolder(async (folder) => {
    const world = await writeTinyWorld(folder);
    for (
      const [model, name] of [
        [fixturePath("tiny-sd"), "lora"],
        [world.model, "ed-lora"],
      ] as const
    ) {
      const expected = await gradientsOn("wasm", model, name);
      const { loss, grads } = await gradientsOn(backend, model, name);
      close(loss / expected.loss, 1, tolerance(backend, 2e-5), name);
      assertEquals([...grads.keys()], [...expected.grads.keys()]);
      for (const [path, gradient] of expected.grads) {
        assert(gradient.some((v) => v !== 0), `${name}: ${path} has none`);
        closeRelative(
          grads.get(path)!,
          gradient,
          tolerance(backend, 2 * GRADIENT),
          `${name}: ${path}`,
        );
      }
    }
  });
}, ["webgpu"]);

/** Three small pictures with masks. */
function pictures(model: Model): Promise<TrainData> {
  // 2×2 latents even at the lowest level, so that every layer has a gradient.
  const side = 32;
  return encodeData(
    model,
    [0, 1, 2].map((i) => ({
      pixels: {
        width: side,
        height: side,
        channels: 3,
        data: Uint8Array.from(
          { length: side * side * 3 },
          (_, k) => (k * (i + 3) * 37) % 256,
        ),
      },
      captions: ["photo of a {}, red", "{} on a table"],
      mask: {
        width: side,
        height: side,
        data: Array.from(
          { length: side * side },
          (_, k) => k % side < 16 ? 1 : 0,
        ),
      },
    })),
  );
}

const SHORT: TrainConfig = method("ed-lora", "official", {
  steps: 4,
  batch: 2,
  seed: 3,
  shuffleCaptions: { keep: 1 },
  embeddingNorm: { limit: 0, relative: false },
}).train;

function begin(model: Model): Promise<Concept> {
  return initConcept(model, { name: "toy", classWord: "cat", key: key(11) });
}

async function values(concept: Concept): Promise<Map<string, number[]>> {
  const all = new Map<string, number[]>();
  for (const [name, t] of conceptTensors(concept)) {
    all.set(name, [...await t.data()]);
  }
  return all;
}

forEachBackend(
  "training moves the concept, only, and leaks nothing",
  async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const data = await pictures(model);
      const concept = await begin(model);
      const before = await values(concept);
      const records: TrainRecord[] = [];
      let result: Concept | undefined;
      let held = 0;
      for await (const record of train(model, concept, data, SHORT)) {
        records.push(record);
        if (record.step > 0) assertEquals(tf.memory().numTensors, held);
        held = tf.memory().numTensors;
        if (record.step === 3) result = conceptOf(concept, record.state);
      }
      assertEquals(records.map((r) => r.step), [0, 1, 2, 3]);
      close(
        records.map((r) => r.lr.embedding),
        [1e-3, 7.5e-4, 5e-4, 2.5e-4],
        1e-9,
      );
      for (const r of records) {
        close(r.loss, r.parts.diffusion + r.parts.attention, 1e-5);
        assert(r.parts.attention > 0);
      }
      assertEquals(await values(concept), before);
      const after = await values(result!);
      for (const [name, old] of before) {
        assert(after.get(name)!.some((v, i) => v !== old[i]), name);
      }
      disposeConcept(result!);
      disposeConcept(concept);
      disposeModel(model);
    });
  },
  ["wasm"],
);

forEachBackend("a rate of 0 freezes a group; down can be frozen", async () => {
  const model = await tinySd();
  const data = await pictures(model);
  const concept = await begin(model);
  const before = await values(concept);
  const config: TrainConfig = {
    ...SHORT,
    steps: 2,
    lr: { embedding: 1e-3, textEncoder: 0, unet: 1e-3 },
    freezeDown: true,
  };
  const result = await customize(model, concept, data, config);
  const after = await values(result);
  for (const [name, old] of before) {
    const moved = after.get(name)!.some((v, i) => v !== old[i]);
    const free = name.startsWith("embedding.") ||
      (name.startsWith("unet.") && name.endsWith(".up"));
    assertEquals(moved, free, name);
  }
  disposeConcept(result);
  disposeConcept(concept);
  disposeModel(model);
}, ["wasm"]);

forEachBackend(
  "accumulated batches are one of their mean gradient",
  async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const data = await pictures(model);
      const concept = await begin(model);
      const still: TrainConfig = {
        ...SHORT,
        // So small that nothing moves: the second step has the first's weights.
        lr: { embedding: 1e-30, textEncoder: 1e-30, unet: 1e-30 },
        schedule: "constant",
        weightDecay: 0,
      };
      /** Losses, and first moments after each step. */
      const run = async (config: TrainConfig) => {
        const losses: number[] = [];
        const moments: Map<string, number[]>[] = [];
        for await (
          const { loss, state } of train(model, concept, data, config)
        ) {
          losses.push(loss);
          const m = new Map<string, number[]>();
          for (const [name, t] of state.adam.m) {
            m.set(name, [...await t.data()]);
          }
          moments.push(m);
        }
        return { losses, moments };
      };
      const one = await run({ ...still, steps: 2, accumulate: 1 });
      const two = await run({ ...still, steps: 1, accumulate: 2 });
      close(two.losses, [(one.losses[0] + one.losses[1]) / 2], 1e-6);
      // AdamW's first moment is 0.1·g, then 0.9·0.1·g + 0.1·g'.
      for (const [name, m] of two.moments[0]) {
        const first = one.moments[0].get(name)!,
          both = one.moments[1].get(name)!;
        const largest = Math.max(1e-12, ...m.map(Math.abs));
        close(
          m.map((v) => v / largest),
          both.map((v, i) => (v + 0.1 * first[i]) / 2 / largest),
          1e-4,
          name,
        );
      }
      disposeConcept(concept);
      disposeModel(model);
    });
  },
  ["wasm"],
);

forEachBackend("alpha scales ΔW, and its gradients with it", async () => {
  const model = await tinySd();
  const { adapter } = await begin(model);
  const scales = (a: typeof adapter) =>
    new Set(
      [...a.unet.values(), ...a.textEncoder.values()].map((l) => l.scale),
    );
  assertEquals(scales(adapter), new Set([1]));
  assertEquals(scales(scaled(adapter, 4)), new Set([1]));
  assertEquals(scales(scaled(adapter, 1)), new Set([0.25]));
  assertEquals(scales(scaled(adapter, 8, true)), new Set([4]));
  assertThrows(() => scaled(adapter, 0), Error, "an alpha other than 0, got 0");
  disposeModel(model);
}, ["wasm"]);

forEachBackend("tokens stop at their norm", async () => {
  const model = await tinySd();
  const data = await pictures(model);
  const concept = await begin(model);
  const config: TrainConfig = {
    ...SHORT,
    embeddingNorm: { limit: 1e-6, relative: true },
  };
  const seen: number[][] = [];
  for await (const { state } of train(model, concept, data, config)) {
    assert(state.embeddingsStopped);
    seen.push([...await state.params.get("embedding.<toy1>")!.data()]);
  }
  // The first step moves them and finds the limit passed.
  assertEquals(seen[1], seen[0]);
  assertEquals(seen[3], seen[0]);
  disposeConcept(concept);
  disposeModel(model);
}, ["wasm"]);

forEachBackend("a stopped run goes on to the same numbers", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const data = await pictures(model);
    const concept = await begin(model);
    const whole = await customize(model, concept, data, SHORT);
    const expected = await values(whole);
    const folder = await Deno.makeTempDir();
    const checkpoint = `${folder}/state.safetensors`;
    try {
      for await (const { step, state } of train(model, concept, data, SHORT)) {
        if (step === 1) {
          await saveTrainState(checkpoint, state);
          break;
        }
      }
      const steps: number[] = [];
      const rest = await customize(model, concept, data, SHORT, {
        checkpoint,
        every: 1,
        onRecord: ({ step }) => void steps.push(step),
      });
      assertEquals(steps, [2, 3]);
      assertEquals(await values(rest), expected);
      // Once more: nothing is left to do, the result is the same.
      const again = await customize(model, concept, data, SHORT, {
        checkpoint,
      });
      assertEquals(await values(again), expected);
      await assertRejects(
        () =>
          customize(model, concept, data, { ...SHORT, seed: 4 }, {
            checkpoint,
          }),
        Error,
        "Cannot resume training at step 4: expected the settings that it was " +
          "started with (seed 3), got seed 4",
      );
      // Another α is another run, though no setting of it differs.
      const half = { ...concept, adapter: scaled(concept.adapter, 1) };
      await assertRejects(
        () => customize(model, half, data, SHORT, { checkpoint }),
        Error,
        "Cannot resume training at step 4",
      );
      await Deno.writeTextFile(checkpoint, "not a state");
      await assertRejects(() => loadTrainState(checkpoint));
      [rest, again].forEach(disposeConcept);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
    disposeConcept(whole);
    disposeConcept(concept);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("pivotal tuning: first the word, then the adapter", async () => {
  const model = await tinySd();
  const data = await pictures(model);
  const concept = await begin(model);
  const config: TrainConfig = {
    ...SHORT,
    pivot: 0.5,
    weightDecay: 0,
    lr: { embedding: 1e-3, textEncoder: 2e-4, unet: 3e-4 },
  };
  const folder = await Deno.makeTempDir();
  const checkpoint = `${folder}/state.safetensors`;
  const seen: Map<string, number[]>[] = [await values(concept)];
  const rates: number[] = [];
  for await (const { step, state, lr } of train(model, concept, data, config)) {
    const now = conceptOf(concept, state);
    seen.push(await values(now));
    disposeConcept(now);
    rates.push(lr.embedding);
    if (step === 2) await saveTrainState(checkpoint, state);
  }
  // Each phase has a decay of its own.
  close(rates, [1e-3, 5e-4, 1e-3, 5e-4], 1e-9);
  for (const name of seen[0].keys()) {
    const moves = seen.slice(1).map((now, i) =>
      now.get(name)!.some((v, k) => v !== seen[i].get(name)![k])
    );
    const word = name.startsWith("embedding.");
    // `down` has no gradient while `up` is zero.
    const second = !word && !name.endsWith(".down");
    assertEquals(moves, [word, word, second, !word], name);
    if (!second) continue;
    // Moments begin anew: Adam's first step is the rate, whatever the gradient.
    const rate = name.startsWith("unet.") ? 3e-4 : 2e-4;
    const largest = Math.max(...seen[3].get(name)!.map(Math.abs));
    close(largest / rate, 1, 1e-2, name);
  }
  // The state's file knows that AdamW counts from the pivot.
  const rest = await customize(model, concept, data, config, { checkpoint });
  assertEquals(await values(rest), seen[4]);
  disposeConcept(rest);
  for (const pivot of [-0.5, 0.01, 1, NaN]) {
    await assertRejects(
      () => customize(model, concept, data, { ...config, pivot }),
      Error,
      "a pivot that leaves steps on both sides",
    );
  }
  for (const lr of [{ embedding: 0 }, { textEncoder: 0, unet: 0 }]) {
    const frozen = { ...config, lr: { ...config.lr, ...lr } };
    await assertRejects(
      () => customize(model, concept, data, frozen),
      Error,
      "an embedding and an adapter",
    );
  }
  await Deno.remove(folder, { recursive: true });
  disposeConcept(concept);
  disposeModel(model);
}, ["wasm"]);

Deno.test("orthogonal adaptation: adapters of clients do not meet", async () => {
  const model = await tinySd();
  const how = method("orthogonal-adaptation");
  assertEquals(how.train.freezeDown, true);
  const concepts = await Promise.all(
    [1, 2].map((i) =>
      startConcept(model, how, {
        name: `toy${i}`,
        classWord: "cat",
        key: key(i),
        rank: 4,
      })
    ),
  );
  let disjoint = 0;
  for (const component of ["textEncoder", "unet"] as const) {
    for (const [path, first] of concepts[0].adapter[component]) {
      const second = concepts[1].adapter[component].get(path)!;
      const inner = async (a: typeof first, b: typeof first) => {
        const product = tf.tidy(() =>
          tf.matMul(a.down as tf.Tensor2D, b.down as tf.Tensor2D, true)
        );
        const data = [...await product.data()];
        product.dispose();
        return data;
      };
      // Columns of one orthogonal matrix: each client's are orthonormal,
      close(
        await inner(first, first),
        Array.from({ length: 16 }, (_, k) => k % 5 === 0 ? 1 : 0),
        1e-5,
        path,
      );
      // and two clients have a column in common or are orthogonal.
      const shared = await inner(first, second);
      for (const x of shared) {
        assert(Math.abs(x) < 1e-5 || Math.abs(x - 1) < 1e-5, `${path}: ${x}`);
      }
      if (shared.every((x) => Math.abs(x) < 1e-5)) disjoint++;
    }
  }
  assert(disjoint > 30, `${disjoint} layers without crosstalk`);
  concepts.forEach(disposeConcept);
  disposeModel(model);
});

Deno.test("kill -9 while training: the rerun ends in the same numbers", async () => {
  const folder = await Deno.makeTempDir();
  const script = new URL("./train_process.ts", import.meta.url).pathname;
  const run = (out: string) =>
    new Deno.Command(Deno.execPath(), {
      args: ["run", "-q", "-A", ON_ONE_CORE, script, `${folder}/${out}`],
      stdout: "piped",
      stderr: "null",
    }).spawn();
  const finish = async (out: string): Promise<string[]> => {
    const { stdout, success } = await run(out).output();
    assert(success);
    return new TextDecoder().decode(stdout).trim().split("\n");
  };
  try {
    const undisturbed = await finish("a");
    // Killed as soon as it says that it has done its second step.
    const child = run("b");
    const reader = child.stdout.getReader();
    let said = "";
    while (!said.includes("step 1\n")) {
      const { value, done } = await reader.read();
      assert(!done, "it ended before it could be killed");
      said += new TextDecoder().decode(value);
    }
    child.kill("SIGKILL");
    await reader.cancel();
    assertEquals((await child.status).signal, "SIGKILL");
    const rerun = await finish("b");
    assertEquals(undisturbed.filter((l) => l.startsWith("step")).length, 4);
    const repeated = rerun.filter((l) => l.startsWith("step"));
    assert(repeated.length > 0 && repeated.length < 4, repeated.join());
    // The last line is a hash of all weights.
    assertEquals(rerun.at(-1), undisturbed.at(-1));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

forEachBackend("prior preservation adds class pictures", async () => {
  const model = await tinySd();
  const data = await pictures(model);
  const prior = {
    ...data,
    captions: data.captions.map(() => ["photo of a cat"]),
  };
  const concept = await begin(model);
  const config = { ...SHORT, steps: 1, priorWeight: 0.5 };
  const records: TrainRecord[] = [];
  for await (const record of train(model, concept, data, config, { prior })) {
    records.push(record);
  }
  const [{ loss, parts }] = records;
  assert(parts.prior > 0);
  close(loss, parts.diffusion + parts.attention + parts.prior, 1e-5);
  disposeConcept(concept);
  disposeModel(model);
}, ["wasm"]);

forEachBackend("a bad run is an error before work starts", async () => {
  const model = await tinySd();
  const data = await pictures(model);
  const concept = await begin(model);
  const bad: [Partial<TrainConfig>, string][] = [
    [{ steps: 0 }, "expected steps ≥ 1"],
    [{ batch: 1.5 }, "expected batch ≥ 1"],
    [{ lr: { embedding: -1, textEncoder: 0, unet: 0 } }, "embedding rate ≥ 0"],
    [{ lr: { embedding: 0, textEncoder: 0, unet: 0 } }, "a rate above 0"],
  ];
  for (const [config, message] of bad) {
    await assertRejects(
      () => customize(model, concept, data, { ...SHORT, ...config }),
      Error,
      message,
    );
  }
  disposeConcept(concept);
  disposeModel(model);
}, ["wasm"]);

/** Latents of a size, with captions that tell the pictures apart. */
function latents(height: number, width: number, count: number): TrainData {
  const values = (size: number) =>
    Float32Array.from({ length: size }, (_, i) => Math.sin(i * height));
  const size = count * height * width * 4;
  return {
    ...{ count, height, width, channels: 4 },
    ...{ mean: values(size), std: new Float32Array(size) },
    captions: Array.from({ length: count }, (_, i) => [`${height} ${i}`]),
    mask: new Uint8Array(count * height * width).fill(1),
  };
}

Deno.test("buckets take turns in proportion; each goes through its pictures", async () => {
  await selectBackend("wasm");
  const data = [latents(4, 8, 4), latents(8, 4, 1), latents(6, 6, 7)];
  const s = schedule(parseSchedulerConfig({}));
  const config = { ...SHORT, batch: 2, shuffleCaptions: false as const };
  const seen = new Map<string, number>();
  const turns = [0, 0, 0];
  // Two rounds of twelve steps.
  for (let step = 0; step < 24; step++) {
    const batch = drawBatch(s, "x", data, data, config, key(5), step);
    const [rows, height, width] = batch.latents.shape;
    assertEquals([rows, batch.prior], [4, 2]);
    const bucket = data.findIndex((d) => d.height === height);
    assertEquals(width, data[bucket].width);
    turns[bucket]++;
    for (const prompt of batch.prompts.slice(0, 2)) {
      assert(prompt.startsWith(`${height} `));
      seen.set(prompt, (seen.get(prompt) ?? 0) + 1);
    }
    tf.dispose([batch.latents, batch.noise, batch.mask]);
  }
  assertEquals(turns, [8, 2, 14]);
  // Every picture is drawn as often as every other.
  assertEquals(seen.size, 12);
  assertEquals(new Set(seen.values()), new Set([4]));
});

forEachBackend("a run over several sizes is stopped and goes on", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const data = [latents(8, 16, 2), latents(16, 8, 1)];
    const concept = await begin(model);
    const folder = await Deno.makeTempDir();
    const run = async (steps: number, checkpoint?: string) => {
      const losses: number[] = [];
      let state: TrainState | undefined;
      if (checkpoint) state = await loadTrainState(checkpoint);
      const resume = state && { resume: state };
      for await (const record of train(model, concept, data, SHORT, resume)) {
        losses.push(record.loss);
        if (record.step + 1 === steps) {
          await saveTrainState(`${folder}/state`, record.state);
          break;
        }
      }
      if (state) disposeTensors(state.params, state.adam.m, state.adam.v);
      return losses;
    };
    try {
      const whole = await run(4);
      const first = await run(2);
      const rest = await run(4, `${folder}/state`);
      assertEquals([...first, ...rest], whole);
      await assertRejects(
        async () => {
          const one = train(model, concept, data, SHORT, { prior: data[0] });
          await one.next();
        },
        Error,
        "Cannot train: expected class pictures of 2 sizes, got 1",
      );
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
    disposeConcept(concept);
    disposeModel(model);
  });
}, ["wasm"]);
