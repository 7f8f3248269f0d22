/**
 * `deno run -P=local tests/tools/real_lora.ts FILE…`: reads real LoRA files for
 * Stable Diffusion, makes sure that every tensor is used, and sends each through
 * every dialect and back. No weights of a model are needed.
 *
 * @module
 */
import { selectBackend } from "../../src/core/backend.ts";
import {
  layersOf,
  type LoraBase,
  loraBase,
} from "../../src/formats/dialects/base.ts";
import { inspectLora } from "../../src/formats/convert.ts";
import { COMPONENTS } from "../../src/customize/lora.ts";
import {
  DIALECTS,
  disposeLora,
  loadLora,
  type LoraFile,
} from "../../src/formats/lora.ts";
import { loraBytes } from "../../src/formats/lora_write.ts";
import { openTensors } from "../../src/formats/pickle.ts";

/** Largest relative difference of a number: factors, scales, tokens. */
async function difference(a: LoraFile, b: LoraFile): Promise<number> {
  let worst = 0;
  const see = (x: ArrayLike<number>, y: ArrayLike<number>, s = 1, t = 1) => {
    if (x.length !== y.length) worst = Infinity;
    for (let i = 0; i < x.length; i++) {
      if (s * x[i] === t * y[i]) continue;
      worst = Math.max(worst, Math.abs((s * x[i] - t * y[i]) / (s * x[i])));
    }
  };
  for (const component of COMPONENTS) {
    if (a.adapter[component].size !== b.adapter[component].size) {
      return Infinity;
    }
    for (const [path, x] of a.adapter[component]) {
      const y = b.adapter[component].get(path);
      if (!y) return Infinity;
      see(await x.down.data(), await y.down.data());
      see(await x.up.data(), await y.up.data(), x.scale, y.scale);
    }
  }
  for (const [token, x] of b.embeddings.size > 0 ? a.embeddings : []) {
    const y = b.embeddings.get(token);
    if (!y) return Infinity;
    see(await x.data(), await y.data());
  }
  return worst;
}

/** Sends a LoRA through every dialect and back. */
async function rounds(file: LoraFile, base: LoraBase): Promise<boolean> {
  let good = true;
  for (const d of DIALECTS) {
    const apart = !d.tokens && file.embeddings.size > 0;
    const { adapter, embeddings } = file;
    try {
      const there = await loadLora(
        await loraBytes(
          apart ? { adapter } : { adapter, embeddings },
          base,
          d.id,
        ),
        base,
      );
      const back = await loadLora(
        await loraBytes(there, base, file.dialect),
        base,
      );
      const error = Math.max(
        await difference(file, there),
        await difference(file, back),
      );
      // One rounding each way, where scales are folded into factors.
      good &&= error <= 2 ** -22;
      const note = apart ? " (tokens apart)" : "";
      console.log(`  ${d.id.padEnd(14)} relative difference ${error}${note}`);
      disposeLora(there);
      disposeLora(back);
    } catch (error) {
      console.log(
        `  ${d.id.padEnd(14)} ${(error as Error).message.slice(0, 90)}`,
      );
    }
  }
  return good;
}

if (import.meta.main) {
  await selectBackend("wasm");
  let good = Deno.args.length > 0;
  if (!good) console.error("Which files?");
  for (const path of Deno.args) {
    const summary = await inspectLora(path);
    const opened = await openTensors(path);
    const tensors = opened.entries.size;
    opened.close();
    const base = loraBase(summary.base!);
    const { sites } = layersOf(base);
    const started = performance.now();
    const file = await loadLora(path, base);
    const seconds = (performance.now() - started) / 1000;
    console.log(
      `${path}: ${summary.describe}, ${tensors} tensors, all used, in ` +
        `${
          seconds.toFixed(2)
        } s: text encoder ${summary.layers.textEncoder} of ` +
        `${sites.textEncoder.size} layers, UNet ${summary.layers.unet} of ` +
        `${sites.unet.size}, ranks ${summary.ranks.map(([r]) => r)}, factors ` +
        `${summary.factors.map(([f]) => f)} (${summary.scales}), tokens ` +
        `${summary.tokens.map(([t]) => t).join(" ") || "none"}`,
    );
    good = await rounds(file, base) && good;
    disposeLora(file);
  }
  Deno.exit(good ? 0 : 1);
}
