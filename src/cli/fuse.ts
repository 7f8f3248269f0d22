/**
 * `deno task fuse`: fuses concepts into one model.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { finish } from "../core/finish.ts";
import { key } from "../core/random.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import { fuse, type FuseOptions } from "../fusion/gradient.ts";
import { weightFusion } from "../fusion/weight.ts";
import { assertWritable, joinPath, parentOf } from "../io/files.ts";
import { saveSingleFile } from "../formats/ldm.ts";
import { disposeModel, type Model, saveModel } from "../models/model.ts";
import { type Command, dtypeOf, EXIT_CODES, readOptions } from "./command.ts";
import {
  CONCEPT_HELP,
  type ConceptRequest,
  openConcepts,
  parseConcept,
} from "./concepts.ts";
import {
  backendStarter,
  MODEL_HELP,
  MODEL_OPTIONS,
  modelOf,
  type ModelRequest,
  mustExist,
  openModel,
} from "./models.ts";
import { createProgress } from "./progress.ts";

const HELP = `deno task fuse --concept FILE --concept FILE … [options]

Fuses concepts into one model that knows them all, and writes it as a folder in
diffusers layout.

${CONCEPT_HELP}
${MODEL_HELP}

  --method NAME        gradient: each layer matches what the single-concept
                       models compute (Mix-of-Show); weight: W + λ Σ ΔW
                       (default gradient)
  --lambda X           λ of weight fusion (1/n)
  --solver NAME        closed (least squares) or lbfgs, as the official code
  --ridge X            ridge of the closed form, relative to trace/d
                       (cross-validated for each layer)
  --layers WHICH       fused by gradient: attention, linear (with feed-forwards)
                       or all (with convolutions); the others by weight
                       (default attention)
  --positions WHICH    official, or full: all tokens the UNet attends to
  --template TEXT      prompt that features come from, with {}; may be given
                       again (default: "photo of a {}" and "{}")
  --steps N            sampling steps that features come from (20)
  --pictures N         pictures drawn for that, a concept (1)
  --seed N             (0)

  --out FOLDER         where the model goes (default out/fused)
  --single-file FILE   also one .safetensors for other tools, without tokens
  --dtype TYPE         F32, F16 or BF16 (F32)
  --backend NAME       auto, webgpu, wasm or cpu
  --help               this text

${EXIT_CODES}

Examples:
  deno task fuse --concept out/rex.safetensors --concept out/tom.safetensors
  deno task fuse --model sd-v1-5 --backend webgpu --layers all \\
    --concept "hero.safetensors,trigger=hero,class=man,alpha=0.8" \\
    --concept "car.safetensors,trigger=red racer,class=car"
`;

/** What the command line asks for. */
export interface FuseRequest extends ModelRequest {
  readonly concepts: readonly ConceptRequest[];
  readonly method: "gradient" | "weight";
  readonly lambda?: number;
  /** Settings of gradient fusion. */
  readonly options: FuseOptions;
  readonly out: string;
  readonly singleFile?: string;
  readonly dtype: "F32" | "F16" | "BF16";
  readonly start: () => Promise<void>;
}

/**
 * Reads the command line.
 *
 * @param args Arguments after the command's name.
 * @returns What is asked for; nothing if it is help.
 * @throws If an option is unknown or a value does not fit.
 */
export function parseFuse(args: readonly string[]): FuseRequest | undefined {
  const what = "fuse";
  const options = readOptions(what, args, {
    text: [
      ...MODEL_OPTIONS,
      "method",
      "lambda",
      "solver",
      "ridge",
      "layers",
      "positions",
      "steps",
      "pictures",
      "seed",
      "out",
      "single-file",
      "dtype",
      "backend",
    ],
    many: ["concept", "template"],
  });
  if (options.help) return undefined;
  const concepts = options.many("concept").map((c) => parseConcept(what, c));
  if (concepts.length === 0) throw cannot(what, "--concept FILE", "none");
  const method = options.oneOf("method", ["gradient", "weight"]) ?? "gradient";
  const lambda = options.number("lambda");
  const solver = options.oneOf("solver", ["closed", "lbfgs"]);
  const ridge = options.number("ridge", { least: 0 });
  const layers = options.oneOf("layers", ["attention", "linear", "all"]);
  const positions = options.oneOf("positions", ["official", "full"]);
  const templates = options.many("template");
  const steps = options.number("steps", { whole: true, least: 1 });
  const images = options.number("pictures", { whole: true, least: 1 });
  const singleFile = options.text("single-file");
  return {
    ...modelOf(options),
    concepts,
    method,
    ...(lambda === undefined ? {} : { lambda }),
    options: {
      ...(lambda === undefined ? {} : { lambda }),
      ...(solver === undefined ? {} : { method: solver }),
      ...(ridge === undefined ? {} : { ridge }),
      ...(layers === undefined ? {} : { layers }),
      ...(positions === undefined ? {} : { positions }),
      ...(templates.length === 0 ? {} : { templates }),
      ...(steps === undefined ? {} : { steps }),
      ...(images === undefined ? {} : { images }),
      key: key(options.number("seed", { whole: true, least: 0 }) ?? 0),
      strengths: concepts.map(({ alpha = 1 }) => ({
        unet: alpha,
        textEncoder: alpha,
      })),
    },
    out: options.text("out") ?? joinPath("out", "fused"),
    ...(singleFile === undefined ? {} : { singleFile }),
    dtype: dtypeOf(options) ?? "F32",
    start: backendStarter(options),
  };
}

/** Fuses, shows progress, and says how well the layers match. */
async function fused(
  request: FuseRequest,
  base: Model,
  concepts: readonly Concept[],
): Promise<Model> {
  const { lambda, options } = request;
  if (request.method === "weight") {
    return weightFusion(base, concepts, {
      ...(lambda === undefined ? {} : { lambda }),
      ...(options.strengths ? { strengths: options.strengths } : {}),
    });
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
    if (record.stage === "weight") return;
    sums.before += record.lossBefore;
    sums.after += record.lossAfter;
    sums.average += record.lossWeightFusion;
  });
  progress.finish();
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
export async function runFuse(request: FuseRequest): Promise<void> {
  const { out, singleFile, dtype } = request;
  await mustExist("fuse", ...request.concepts.map(({ path }) => path));
  await assertWritable(out);
  if (singleFile) await assertWritable(parentOf(singleFile));
  await request.start();
  const base = await openModel(request);
  try {
    const concepts = await openConcepts(request.concepts, base);
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
    disposeModel(base);
  }
}

/** `deno task fuse`. */
export const fuseCommand: Command<FuseRequest> = {
  name: "fuse",
  summary: "fuse concepts into one model",
  help: HELP,
  parse: parseFuse,
  run: runFuse,
};
