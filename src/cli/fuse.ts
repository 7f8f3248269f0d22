/**
 * `deno task fuse`: fuses concepts into one model.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { finish } from "../core/finish.ts";
import { key } from "../core/random.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import { ATTENTION } from "../customize/sites.ts";
import { fuse, type FuseOptions } from "../fusion/gradient.ts";
import { fusionMemory } from "../fusion/memory.ts";
import { weightFusion } from "../fusion/weight.ts";
import {
  assertDistinct,
  assertWritable,
  assertWritableFile,
  joinPath,
} from "../io/files.ts";
import { saveSingleFile } from "../formats/ldm.ts";
import { disposeModel, type Model, saveModel } from "../models/model.ts";
import { type Command, command } from "./command.ts";
import { CONCEPT_OPTION, openConcepts, unusedFields } from "./concepts.ts";
import { MODEL_OPTIONS, mustExist, openModel, startBackend } from "./models.ts";
import {
  BACKEND_OPTION,
  DTYPE_OPTION,
  folder,
  givenOptions,
  number,
  oneOf,
  optionTable,
  outputFile,
  samplingSteps,
  seedNumber,
  text,
  type Values,
  whole,
} from "./options.ts";
import { createProgress } from "./progress.ts";
import {
  applyMemory,
  MEMORY_OPTIONS,
  memoryFor,
  type MemoryUse,
} from "./memory_use.ts";

const count = whole({ least: 1 });

const OPTIONS = optionTable({
  concept: { ...CONCEPT_OPTION.concept, needed: true },
  ...MODEL_OPTIONS,
  method: {
    type: oneOf(["gradient", "weight"]),
    section: "",
    default: "gradient",
    help:
      "gradient: each layer matches what the single-concept models compute " +
      "(Mix-of-Show); weight: W + λ Σ ΔW",
  },
  lambda: {
    type: number(),
    otherwise: "1/n",
    help: "λ of weight fusion",
  },
  solver: {
    type: oneOf(["closed", "lbfgs"]),
    otherwise: "closed",
    help: "closed (least squares), or lbfgs as in the official code",
  },
  ridge: {
    type: number({ least: 0 }),
    otherwise: "cross-validated for each layer",
    help: "ridge of the closed form, relative to trace/d",
  },
  layers: {
    type: oneOf(["attention", "linear", "all"]),
    hint: "WHICH",
    otherwise: "attention",
    help: "layers fused by gradient: attention, linear (with feed-forwards) " +
      "or all (with convolutions); the others are fused by weight",
  },
  positions: {
    type: oneOf(["official", "full"]),
    hint: "WHICH",
    otherwise: "official",
    help: "token positions of keys and values: official (V and the end " +
      "token), or full (all that the UNet attends to)",
  },
  template: {
    type: text,
    many: true,
    otherwise: '"photo of a {}" and "{}"',
    help: "prompt that features come from; {} stands for the concept",
  },
  steps: {
    type: samplingSteps,
    otherwise: "20",
    help: "sampling steps that features come from",
  },
  pictures: {
    type: count,
    otherwise: "2; 1 with --ridge or lbfgs",
    help: "pictures per concept that features come from",
  },
  seed: {
    type: seedNumber,
    otherwise: "0",
    help: "seed of these pictures",
  },
  out: {
    type: folder,
    section: "",
    default: joinPath("out", "fused"),
    help: "folder that the model is written to",
  },
  singleFile: {
    type: outputFile(".safetensors"),
    help: "also one .safetensors file for other tools, without learned tokens",
  },
  dtype: { ...DTYPE_OPTION.dtype, default: "F32" },
  ...BACKEND_OPTION,
  ...MEMORY_OPTIONS,
});

/** What the command line asks for. */
export type FuseRequest = Values<typeof OPTIONS>;

/** What gradient fusion alone uses. */
const GRADIENT_ONLY = [
  "solver",
  "ridge",
  "layers",
  "positions",
  "steps",
  "pictures",
  "seed",
  "template",
] as const;

/** Refuses options that the method does not use. */
function checked(request: FuseRequest): FuseRequest {
  const unused = givenOptions(OPTIONS, request, GRADIENT_ONLY);
  if (request.method === "weight" && unused.length > 0) {
    throw cannot(
      "fuse",
      `--method gradient with ${unused.join(", ")}`,
      "weight",
    );
  }
  if (request.solver === "lbfgs" && request.ridge !== undefined) {
    throw cannot("fuse", "--solver closed with --ridge", "lbfgs");
  }
  return request;
}

/** What gradient fusion is told. */
function fuseOptions(request: FuseRequest): FuseOptions {
  const { lambda, solver, ridge, layers, positions, template } = request;
  return {
    lambda,
    method: solver,
    ridge,
    layers,
    positions,
    templates: template.length > 0 ? template : undefined,
    steps: request.steps,
    images: request.pictures,
    key: key(request.seed ?? 0),
    strengths: request.concept.map(({ alpha = 1 }) => ({
      unet: alpha,
      textEncoder: alpha,
    })),
  };
}

/** Fuses, shows progress, and says how well the layers match. */
async function fused(
  request: FuseRequest,
  base: Model,
  concepts: readonly Concept[],
): Promise<Model> {
  const { lambda } = request;
  const options = fuseOptions(request);
  if (request.method === "weight") {
    const { strengths } = options;
    return weightFusion(base, concepts, { lambda, strengths });
  }
  const nameless = concepts.find((c) => !c.phrase && !c.classWord);
  if (nameless) {
    throw cannot(
      `fuse "${nameless.name}"`,
      "trigger words or a class word (--concept FILE,trigger=TEXT,class=WORD)",
      "neither",
    );
  }
  const progress = createProgress();
  const sums = { before: 0, after: 0, average: 0 };
  let byWeight = 0;
  let beyond = false;
  const model = await finish(fuse(base, concepts, options), (record) => {
    if (record.type === "features") {
      progress.update(
        `features of ${record.concept}, ${record.stage}`,
        record.index,
        record.total,
      );
      return;
    }
    progress.update("layers", record.index, record.total, "layer");
    if (record.stage === "weight") {
      byWeight++;
      return;
    }
    beyond ||= !ATTENTION.test(record.layer);
    sums.before += record.lossBefore;
    sums.after += record.lossAfter;
    sums.average += record.lossWeightFusion;
  });
  progress.finish();
  if (lambda !== undefined && byWeight === 0) {
    console.error(
      "--lambda changes only the comparison: no layer is fused by weight here",
    );
  }
  const { layers = "attention" } = request;
  if (layers !== "attention" && !beyond) {
    console.error(
      `--layers ${layers} changes nothing: the concepts have layers of ` +
        "attention only",
    );
  }
  const share = (x: number) => `${(100 * x / sums.before).toFixed(1)} %`;
  if (sums.before > 0) {
    console.log(
      `feature error left: ${share(sums.after)} (weight fusion: ${
        share(sums.average)
      })`,
    );
  }
  return model;
}

/**
 * Fuses the concepts and writes the model.
 *
 * @param request What is asked for.
 * @throws Before work starts, if files are missing, the output cannot be
 * written, the backend is not available or a concept does not fit.
 */
async function runFuse(request: FuseRequest): Promise<void> {
  const { out, singleFile, dtype } = request;
  await mustExist("fuse", ...request.concept.map(({ path }) => path));
  await assertDistinct("fuse", { "--out": out, "--single-file": singleFile });
  await assertWritable(out);
  if (singleFile) await assertWritableFile(singleFile);
  await startBackend(request.backend);
  const use = await memoryOf(request);
  const base = await openModel(request, use);
  const release = applyMemory(use, request);
  try {
    const concepts = await openConcepts(request.concept, base);
    for (const [i, { phrase }] of concepts.entries()) {
      const asked = request.concept[i];
      const fields = phrase === asked.class?.trim() ? [] : ["class"] as const;
      const why = `"${phrase}" calls the concept`;
      unusedFields(asked, fields, why).forEach((line) => console.error(line));
    }
    try {
      const model = await fused(request, base, concepts);
      try {
        await saveModel(out, model, { dtype });
        if (singleFile) {
          await saveSingleFile(singleFile, model, {
            dtype,
            withoutTokens: true,
          });
        }
      } finally {
        disposeModel(model, base);
      }
      for (const { name, phrase } of concepts) {
        console.log(`${name}: ${phrase || "(no phrase)"}`);
      }
      console.log(out);
      if (singleFile) console.log(singleFile);
    } finally {
      concepts.forEach(disposeConcept);
    }
  } finally {
    release();
    disposeModel(base);
  }
}

/** How memory is used, where the fusion fits at all. */
function memoryOf(request: FuseRequest): Promise<MemoryUse> {
  const { concept, method, layers, pictures } = request;
  return memoryFor(request, (configs, { width, height }) => ({
    what: "fuse",
    run: { height, width, batch: pictures ?? 2 },
    batched: false,
    count: ({ memory, half }, options) =>
      fusionMemory(configs, {
        concepts: concept.length,
        method,
        layers,
        images: pictures,
        memory,
        half,
      }, options),
  }));
}

/** `deno task fuse`. */
export const fuseCommand: Command<FuseRequest> = command({
  name: "fuse",
  summary: "fuse concepts into one model",
  usage: "deno task fuse --concept FILE --concept FILE … [options]",
  about:
    `Fuses concepts into one model that knows them all, and writes the model as a
folder in diffusers' layout.`,
  options: OPTIONS,
  examples: [
    "deno task fuse --concept out/rex.safetensors --concept out/tom.safetensors",
    "deno task fuse --model sd-v1-5 --backend webgpu --layers all \\\n" +
    '    --concept "hero.safetensors,trigger=hero,class=man,alpha=0.8" \\\n' +
    '    --concept "car.safetensors,trigger=red racer,class=car"',
  ],
  request: checked,
  run: runFuse,
});
