import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { fold, key, normal } from "../../src/core/random.ts";
import { at, updateAt } from "../../src/core/tree.ts";
import {
  attach,
  disposeAdapter,
  initLora,
  merge,
} from "../../src/customize/lora.ts";
import { readLora } from "../../src/formats/lora.ts";
import { encodeLora } from "../../src/formats/lora_write.ts";
import { extractLora } from "../../src/formats/extract.ts";
import {
  encodeSafetensors,
  openSafetensors,
} from "../../src/io/safetensors.ts";
import type { LowRank } from "../../src/nn/linear.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import { matrix, multiply, qr } from "../../src/optim/least_squares.ts";
import { close, noLeak } from "../helpers.ts";
import { tinySd } from "../customize/tiny_sd.ts";

/** A model in which one parameter of the UNet is moved. */
function moved(
  model: Model,
  path: string,
  change: Float32Array,
): { tuned: Model; tensor: tf.Tensor } {
  const before = at(model.unet.params, path) as tf.Tensor;
  const tensor = tf.tidy(() => before.add(tf.tensor(change, before.shape)));
  const params = updateAt(model.unet.params, [path], () => tensor);
  return { tuned: { ...model, unet: { ...model.unet, params } }, tensor };
}

/** A matrix with these singular values and random directions. */
function withSpectrum(
  rows: number,
  columns: number,
  values: readonly number[],
): Float32Array {
  const directions = (n: number, seed: number) =>
    qr(matrix(n, values.length, normal(key(seed), n * values.length))).q;
  const u = directions(rows, 1);
  const v = directions(columns, 2);
  const scaled = matrix(
    values.length,
    columns,
    Float64Array.from({ length: values.length * columns }, (_, i) => {
      const [k, j] = [Math.floor(i / columns), i % columns];
      return values[k] * v.data[j * values.length + k];
    }),
  );
  return Float32Array.from(multiply(u, scaled).data);
}

/** A fresh adapter's layers with random instead of zero `up`. */
function fill(
  layers: ReadonlyMap<string, LowRank>,
  name: string,
): Map<string, LowRank> {
  return new Map([...layers].map(([path, low]) => {
    const values = normal(fold(key(5), name, path), low.up.size, 0.05);
    return [path, { ...low, up: tf.tensor(values, low.up.shape) }];
  }));
}

const LINEAR = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj";
const CONV = "mid_block.resnets.0.conv1";

Deno.test("a merged LoRA comes back, layer by layer", async () => {
  const base = await tinySd();
  await noLeak(async () => {
    const fresh = initLora(base, { rank: 3, key: key(4), targets: "all" });
    const filled = {
      ...fresh,
      textEncoder: fill(fresh.textEncoder, "text"),
      unet: fill(fresh.unet, "unet"),
    };
    const merged = await merge(attach(base, filled));
    const { adapter, layers, lost, residual } = await extractLora(
      base,
      merged,
      { rank: 3 },
    );
    assertEquals(lost, []);
    assertEquals(adapter.textEncoder.size, filled.textEncoder.size);
    assertEquals(adapter.unet.size, filled.unet.size);
    // What is left is the rounding of the merged weights to float32: about
    // 2⁻²⁵ of weights that are some ten times their change.
    assert(residual < 3e-6, `${residual}`);
    for (const layer of layers) assert(layer.residual < 1e-5, layer.path);
    const again = await merge(attach(base, adapter));
    for (const path of [LINEAR, CONV]) {
      const expected = at(merged.unet.params, `${path}.weight`) as tf.Tensor;
      const actual = at(again.unet.params, `${path}.weight`) as tf.Tensor;
      close(await actual.data(), await expected.data(), 1e-6, path);
    }
    for (const own of [filled.unet, filled.textEncoder]) {
      for (const { up } of own.values()) up.dispose();
    }
    disposeAdapter(fresh);
    disposeAdapter(adapter);
    disposeModel(merged, base);
    disposeModel(again, base);
  });
  disposeModel(base);
});

Deno.test("the residual is that of Eckart and Young", async () => {
  const base = await tinySd();
  const { shape } = at(base.unet.params, `${LINEAR}.weight`) as tf.Tensor;
  const [rows, columns] = shape as [number, number];
  const spectrum = [4, 3, 2, 1, 0.5];
  const total = spectrum.reduce((sum, s) => sum + s * s, 0);
  const { tuned, tensor } = moved(
    base,
    `${LINEAR}.weight`,
    withSpectrum(rows, columns, spectrum),
  );
  await noLeak(async () => {
    for (const rank of [1, 2, 4]) {
      const tail = spectrum.slice(rank).reduce((sum, s) => sum + s * s, 0);
      const expected = Math.sqrt(tail / total);
      // Exactly, and through the range finder.
      for (const exactUpTo of [256, 1]) {
        const seen: string[] = [];
        const { adapter, layers, residual } = await extractLora(base, tuned, {
          rank,
          exactUpTo,
          onLayer: ({ path }) => seen.push(path),
        });
        assertEquals(seen, [LINEAR]);
        assertEquals(layers.length, 1);
        close(layers[0].norm, Math.sqrt(total), 1e-5, "norm");
        close(layers[0].residual, expected, 1e-6, `rank ${rank}`);
        close(residual, expected, 1e-6);
        assertEquals(adapter.unet.get(LINEAR)!.down.shape, [rows, rank]);
        assertEquals(adapter.unet.get(LINEAR)!.up.shape, [rank, columns]);
        disposeAdapter(adapter);
      }
    }
  });
  tensor.dispose();
  disposeModel(base);
});

Deno.test("a convolution's change is that of its unfolded filter", async () => {
  const base = await tinySd();
  const { shape } = at(base.unet.params, `${CONV}.weight`) as tf.Tensor;
  const [h, w, inputs, outputs] = shape as [number, number, number, number];
  const { tuned, tensor } = moved(
    base,
    `${CONV}.weight`,
    withSpectrum(h * w * inputs, outputs, [3, 1]),
  );
  await noLeak(async () => {
    const { adapter, layers } = await extractLora(base, tuned, { rank: 1 });
    const low = adapter.unet.get(CONV)!;
    assertEquals(low.down.shape, [h, w, inputs, 1]);
    assertEquals(low.up.shape, [1, 1, 1, outputs]);
    close(layers[0].residual, Math.sqrt(1 / 10), 1e-6);
    const full = await extractLora(base, tuned, { rank: 2 });
    const again = await merge(attach(base, full.adapter));
    const weight = at(again.unet.params, `${CONV}.weight`) as tf.Tensor;
    close(await weight.data(), await tensor.data(), 2e-6);
    disposeModel(again, base);
    disposeAdapter(adapter);
    disposeAdapter(full.adapter);
  });
  tensor.dispose();
  disposeModel(base);
});

Deno.test("what no LoRA can hold is reported, not lost", async () => {
  const base = await tinySd();
  const one = moved(base, `${CONV}.bias`, new Float32Array(64).fill(0.5));
  const size = (at(base.unet.params, `${LINEAR}.weight`) as tf.Tensor).size;
  const two = moved(
    one.tuned,
    `${LINEAR}.weight`,
    new Float32Array(size).fill(3 / Math.sqrt(size)),
  );
  await noLeak(async () => {
    const { adapter, lost, layers, residual } = await extractLora(
      base,
      two.tuned,
      { rank: 1 },
    );
    assertEquals(lost.map(({ path }) => path), [`${CONV}.bias`]);
    close(lost[0].norm, 4, 1e-5);
    close(layers[0].norm, 3, 1e-5);
    close(residual, 4 / 5, 1e-5);
    disposeAdapter(adapter);
    // Layers that are not asked for are named as well.
    await assertRejects(
      () => extractLora(base, two.tuned, { rank: 1, targets: "attention" }),
      Error,
      "changes only at",
    );
  });
  tf.dispose([one.tensor, two.tensor]);
  disposeModel(base);
});

Deno.test("an extracted LoRA survives a kohya file; ranks are bounded by the layer", async () => {
  const base = await tinySd();
  const path = "conv_out";
  const { size } = at(base.unet.params, `${path}.weight`) as tf.Tensor;
  const { tuned, tensor } = moved(
    base,
    `${path}.weight`,
    normal(key(7), size, 0.1),
  );
  await noLeak(async () => {
    const { adapter, layers } = await extractLora(base, tuned, { rank: 64 });
    // conv_out has four outputs.
    assertEquals(layers.map(({ rank }) => rank), [4]);
    assert(layers[0].residual < 1e-6);
    const { tensors } = await encodeLora({ adapter }, base, "kohya");
    const file = await openSafetensors(encodeSafetensors(tensors));
    const read = await readLora(file, base);
    for (const part of ["down", "up"] as const) {
      const own = adapter.unet.get(path)!;
      const other = read.adapter.unet.get(path)!;
      close(other.scale, 1, 0);
      close(await other[part].data(), await own[part].data(), 0);
    }
    disposeAdapter(read.adapter);
    disposeAdapter(adapter);
  });
  tensor.dispose();
  disposeModel(base);
});

Deno.test("models that do not fit are refused", async () => {
  const base = await tinySd();
  await noLeak(async () => {
    await assertRejects(
      () => extractLora(base, base, { rank: 2 }),
      Error,
      "the same weights",
    );
    await assertRejects(
      () => extractLora(base, base, { rank: 0 }),
      Error,
      "rank",
    );
    const fresh = initLora(base, { rank: 1, key: key(0) });
    const adapted = attach(base, fresh);
    await assertRejects(
      () => extractLora(base, adapted, { rank: 2 }),
      Error,
      "merged adapters",
    );
    disposeAdapter(fresh);
    const wide = tf.zeros([1, 1]);
    const other = updateAt(base.unet.params, [`${LINEAR}.weight`], () => wide);
    await assertRejects(
      () =>
        extractLora(base, { ...base, unet: { ...base.unet, params: other } }, {
          rank: 2,
        }),
      Error,
      "one architecture",
    );
    wide.dispose();
    const { tuned, tensor } = moved(
      base,
      `${CONV}.bias`,
      new Float32Array(64).fill(NaN),
    );
    await assertRejects(
      () => extractLora(base, tuned, { rank: 2 }),
      Error,
      "NaN at unet mid_block.resnets.0.conv1.bias",
    );
    tensor.dispose();
  });
  disposeModel(base);
});
