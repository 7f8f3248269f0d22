/**
 * `deno task bench:memory [--steps N] [--pictures N] [--json]`: whether memory
 * stays flat while a concept is trained and while pictures are drawn.
 *
 * Tensors are counted by tfjs, bytes are those of the wasm backend's memory,
 * which never shrinks. After a tenth of the work neither may grow.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import {
  customize,
  encodeData,
  generate,
  key,
  loadModel,
  method,
  selectBackend,
  startConcept,
} from "../../mod.ts";
import { classOf, conceptPictures } from "../../examples/concept_pictures.ts";
import { command, runCommand } from "../../src/cli/command.ts";
import { flag, optionTable, parsed, whole } from "../../src/cli/options.ts";
import { cannot } from "../../src/core/errors.ts";
import type { WasmBackend } from "../../src/core/kernels/simd.ts";
import { pathOf } from "../../src/io/files.ts";

/** Memory in use at one moment. */
export interface MemoryRow {
  /** What is done. */
  readonly work: "training" | "drawing";
  /** Steps or pictures done. */
  readonly done: number;
  /** Tensors that tfjs counts. */
  readonly tensors: number;
  /** Bytes of the wasm backend's memory. */
  readonly heap: number;
  /** Bytes of the process in the machine's memory. */
  readonly resident: number;
}

function now(work: MemoryRow["work"], done: number): MemoryRow {
  const { wasm } = tf.backend() as unknown as WasmBackend;
  return {
    work,
    done,
    tensors: tf.memory().numTensors,
    heap: wasm.asm.memory.buffer.byteLength,
    resident: Deno.memoryUsage().rss,
  };
}

/**
 * Watches memory.
 *
 * @param steps Training steps.
 * @param pictures Pictures.
 * @param folder The model. @default the embedded one
 * @returns Ten moments of each work.
 */
export async function* watchMemory(
  steps: number,
  pictures: number,
  folder: string = pathOf(new URL("../../models/micro", import.meta.url)),
): AsyncGenerator<MemoryRow> {
  await selectBackend("wasm");
  const model = await loadModel(folder);
  const data = await encodeData(model, await conceptPictures("bobo"));
  const edLora = method("ed-lora", "paper", { steps });
  const start = await startConcept(model, edLora, {
    ...{ name: "bobo", classWord: classOf("bobo"), key: key(0) },
  });
  const rows: MemoryRow[] = [];
  await customize(model, start, data, edLora.train, {
    onRecord({ step }) {
      if ((step + 1) % (steps / 10) === 0) rows.push(now("training", step + 1));
    },
  });
  yield* rows;
  for (let i = 1; i <= pictures; i++) {
    await generate(model, {
      prompts: ["a photo of a fox on a beach"],
      ...{ steps: 10, guidance: 5, key: key(i) },
    });
    if (i % (pictures / 10) === 0) yield now("drawing", i);
  }
}

/** The first work whose memory grows after a tenth of it; none if all is flat. */
export function growing(
  rows: readonly MemoryRow[],
  fields: readonly ("tensors" | "heap")[] = ["tensors", "heap"],
): string | undefined {
  for (const work of ["training", "drawing"] as const) {
    const own = rows.filter((row) => row.work === work);
    for (const field of fields) {
      const [first, last] = [own[0], own.at(-1)!];
      if (last[field] > first[field]) {
        return `${work}: ${field} from ${first[field]} to ${last[field]}`;
      }
    }
  }
}

/** What can be cut into tenths. */
const tens = parsed("N", (what, name, found) => {
  const count = whole({ least: 10 }).read(what, name, found);
  if (count % 10 === 0) return count;
  throw cannot(what, `${name} a multiple of 10`, found);
});

/** `deno task bench:memory`. */
const memoryBench = command({
  name: "bench:memory",
  what: "watch memory",
  summary: "say whether memory stays flat",
  usage: "deno task bench:memory [options]",
  about: "Trains a concept and draws pictures on the embedded model and says " +
    "what memory is in use as it goes on.",
  options: optionTable({
    steps: { type: tens, default: 1000, help: "training steps" },
    pictures: {
      type: tens,
      default: 200,
      help: "pictures drawn one after the other",
    },
    json: { type: flag, help: "prints JSON only" },
  }),
  request: (values) => values,
  async run({ steps, pictures, json }) {
    const rows = await Array.fromAsync(watchMemory(steps, pictures));
    if (json) console.log(JSON.stringify(rows, null, 2));
    else console.table(rows);
    const grown = growing(rows);
    if (grown) throw cannot("keep memory flat", "no growth", grown);
  },
});

if (import.meta.main) Deno.exit(await runCommand(memoryBench, Deno.args));
