/**
 * `deno task train`: trains a concept from pictures.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { key } from "../core/random.ts";
import { disposeConcept } from "../customize/concept.ts";
import { saveConcept } from "../formats/concept_file.ts";
import {
  encodeData,
  type Example,
  readExamples,
} from "../customize/dataset.ts";
import {
  method,
  type MethodName,
  METHODS,
  type Preset,
  startConcept,
} from "../customize/methods.ts";
import { customize, type TrainConfig } from "../customize/train.ts";
import { modelSize } from "../diffusion/layout.ts";
import { assertWritable, joinPath, parentOf } from "../io/files.ts";
import { disposeModel } from "../models/model.ts";
import { type Command, dtypeOf, EXIT_CODES, readOptions } from "./command.ts";
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

const HELP = `deno task train --name NAME --class WORD --images FOLDER [options]

Trains a concept from pictures and writes it as one .safetensors file, in the
format of the official Mix-of-Show code. A run that is stopped continues.

  --name NAME          what to call the concept: its tokens are <NAME1> <NAME2>
  --class WORD         the ordinary word for it, such as man, dog or chair
  --images FOLDER      PNG or JPEG pictures; beside a.png there may be a.txt,
                       a caption a line, {} in it stands for the concept
  --masks FOLDER       where the subject is, white, one mask.png a picture
                       (default: masks/ inside the folder, if it is there)
  --caption TEXT       caption of pictures without one; may be given again
                       (default: "photo of a {}" and "{}")
  --prior FOLDER       pictures of the class, for prior preservation
  --flips              also every picture mirrored

${MODEL_HELP}
  --method NAME        ${METHODS.slice(0, 4).join(", ")},
                       ${METHODS.slice(4).join(", ")} (ed-lora)
  --preset NAME        settings of paper, official or ablation (paper)
  --steps N            optimisation steps (1000)
  --batch N            pictures a step (4)
  --rank N             rank of the adapter (4)
  --lr-embedding X     learning rates; 0 freezes (1e-3, 1e-5 and 1e-4 for
  --lr-text X          ed-lora)
  --lr-unet X
  --seed N             (0)
  --size N             side of the pictures, pixels (default: the model's)
  --average-class      a class word of several tokens is their mean

  --out FILE           where the concept goes (default out/NAME.safetensors)
  --dtype TYPE         F32, F16 or BF16 (F32)
  --fresh              do not continue a run that was stopped
  --backend NAME       auto, webgpu, wasm or cpu
  --help               this text

${EXIT_CODES}

Examples:
  deno task train --name rex --class dog --images photos/rex
  deno task train --name rex --class dog --images photos/rex \\
    --model sd-v1-5 --backend webgpu --steps 1500
`;

/** What the command line asks for. */
export interface TrainRequest extends ModelRequest {
  readonly name: string;
  readonly class: string;
  readonly images: string;
  readonly masks?: string;
  readonly captions?: readonly string[];
  readonly prior?: string;
  readonly flips: boolean;
  readonly method: MethodName;
  readonly preset: Preset;
  /** What replaces the method's own settings. */
  readonly overrides: Partial<TrainConfig>;
  readonly rank: number;
  readonly size?: number;
  readonly averageClass: boolean;
  readonly out: string;
  readonly dtype?: "F32" | "F16" | "BF16";
  readonly fresh: boolean;
  readonly start: () => Promise<void>;
}

/**
 * Reads the command line.
 *
 * @param args Arguments after the command's name.
 * @returns What is asked for; nothing if it is help.
 * @throws If an option is unknown or a value does not fit.
 */
export function parseTrain(args: readonly string[]): TrainRequest | undefined {
  const what = "train";
  const options = readOptions(what, args, {
    text: [
      ...MODEL_OPTIONS,
      "name",
      "class",
      "images",
      "masks",
      "prior",
      "method",
      "preset",
      "steps",
      "batch",
      "rank",
      "lr-embedding",
      "lr-text",
      "lr-unet",
      "seed",
      "size",
      "out",
      "dtype",
      "backend",
    ],
    many: ["caption"],
    flags: ["flips", "average-class", "fresh"],
  });
  if (options.help) return undefined;
  const name = options.needed("name");
  if (!/^[\p{L}\p{N}_-]+$/u.test(name)) {
    throw cannot(what, "a --name of letters, digits, - and _", `"${name}"`);
  }
  const count = { whole: true, least: 1 };
  const rate = { least: 0 };
  const methodName = options.oneOf("method", METHODS) ?? "ed-lora";
  const preset = options.oneOf("preset", ["paper", "official", "ablation"]) ??
    "paper";
  const { lr } = method(methodName, preset).train;
  const steps = options.number("steps", count);
  const batch = options.number("batch", count);
  const masks = options.text("masks");
  const captions = options.many("caption");
  const prior = options.text("prior");
  const size = options.number("size", count);
  const dtype = dtypeOf(options);
  return {
    ...modelOf(options),
    name,
    class: options.needed("class"),
    images: options.needed("images"),
    ...(masks === undefined ? {} : { masks }),
    ...(captions.length === 0 ? {} : { captions }),
    ...(prior === undefined ? {} : { prior }),
    flips: options.flag("flips"),
    method: methodName,
    preset,
    overrides: {
      seed: options.number("seed", { whole: true, least: 0 }) ?? 0,
      ...(steps === undefined ? {} : { steps }),
      ...(batch === undefined ? {} : { batch }),
      lr: {
        embedding: options.number("lr-embedding", rate) ?? lr.embedding,
        textEncoder: options.number("lr-text", rate) ?? lr.textEncoder,
        unet: options.number("lr-unet", rate) ?? lr.unet,
      },
    },
    rank: options.number("rank", count) ?? 4,
    ...(size === undefined ? {} : { size }),
    averageClass: options.flag("average-class"),
    out: options.text("out") ?? joinPath("out", `${name}.safetensors`),
    ...(dtype === undefined ? {} : { dtype }),
    fresh: options.flag("fresh"),
    start: backendStarter(options),
  };
}

/**
 * Trains the concept and writes it.
 *
 * @param request What is asked for.
 * @throws Before work starts, if files are missing, the output cannot be
 * written, the backend is not available or something does not fit.
 */
export async function runTrain(request: TrainRequest): Promise<void> {
  const { name, out } = request;
  await mustExist("train", request.images, request.masks, request.prior);
  await assertWritable(parentOf(out));
  const state = `${out.replace(/\.safetensors$/, "")}.state.safetensors`;
  if (request.fresh) await Deno.remove(state).catch(ifThere);
  await request.start();
  const model = await openModel(request);
  try {
    const size = request.size ?? modelSize(model).width;
    const examples = await readExamples(request.images, {
      size,
      ...(request.captions ? { captions: request.captions } : {}),
      ...(request.masks ? { masks: request.masks } : {}),
    });
    const classes: Example[] = request.prior
      ? await readExamples(request.prior, {
        size,
        captions: [`photo of a ${request.class}`],
      })
      : [];
    const chosen = method(request.method, request.preset, request.overrides);
    const start = await startConcept(model, chosen, {
      name,
      classWord: request.class,
      key: key(chosen.train.seed),
      rank: request.rank,
      ...(request.averageClass ? { overrides: { severalTokens: "mean" } } : {}),
    });
    try {
      const { flips } = request;
      const data = await encodeData(model, examples, { flips });
      const prior = classes.length > 0
        ? await encodeData(model, classes)
        : undefined;
      console.log(
        `${request.method}, ${chosen.train.steps} steps, ${examples.length} ` +
          `pictures of ${size}×${size}, as ${start.phrase}`,
      );
      const progress = createProgress();
      let smooth: number | undefined;
      const concept = await customize(model, start, data, chosen.train, {
        checkpoint: state,
        ...(prior ? { prior } : {}),
        onRecord({ step, total, loss }) {
          smooth = smooth === undefined ? loss : 0.95 * smooth + 0.05 * loss;
          progress.update("training", step + 1, total);
        },
      });
      progress.finish();
      try {
        const { dtype } = request;
        await saveConcept(out, concept, model, dtype ? { dtype } : {});
      } finally {
        disposeConcept(concept);
      }
      await Deno.remove(state).catch(ifThere);
      if (smooth !== undefined) console.log(`loss ${smooth.toFixed(4)}`);
      console.log(out);
      console.log(
        `deno task sample --concept ${out} --prompt "photo of a ${start.phrase}"`,
      );
    } finally {
      disposeConcept(start);
    }
  } finally {
    disposeModel(model);
  }
}

function ifThere(error: unknown): void {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}

/** `deno task train`. */
export const trainCommand: Command<TrainRequest> = {
  name: "train",
  summary: "train a concept from pictures",
  help: HELP,
  parse: parseTrain,
  run: runTrain,
};
