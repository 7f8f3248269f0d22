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
  type Method,
  method,
  METHODS,
  startConcept,
} from "../customize/methods.ts";
import { customize } from "../customize/train.ts";
import { modelSize } from "../diffusion/layout.ts";
import { assertWritable, joinPath, parentOf } from "../io/files.ts";
import { disposeModel } from "../models/model.ts";
import { type Command, command } from "./command.ts";
import { MODEL_OPTIONS, mustExist, openModel, startBackend } from "./models.ts";
import {
  BACKEND_OPTION,
  BACKGROUND_OPTION,
  DTYPE_OPTION,
  file,
  flag,
  folder,
  number,
  oneOf,
  optionTable,
  parsed,
  text,
  type Values,
  whole,
} from "./options.ts";
import { createProgress } from "./progress.ts";

const rate = number({ least: 0 });
const count = whole({ least: 1 });

const OPTIONS = optionTable({
  name: {
    type: parsed("NAME", (what, name, found) => {
      if (/^[\p{L}\p{N}_-]+$/u.test(found)) return found;
      throw cannot(what, `a ${name} of letters, digits, - and _`, `"${found}"`);
    }),
    needed: true,
    help: "what to call the concept: its tokens are <NAME1> <NAME2>",
  },
  class: {
    type: text,
    hint: "WORD",
    needed: true,
    help: "the ordinary word for it, such as man, dog or chair",
  },
  images: {
    type: folder,
    needed: true,
    help:
      "PNG, JPEG, WebP or AVIF pictures; beside a.png there may be a.txt, a caption a " +
      "line, {} in it stands for the concept",
  },
  masks: {
    type: folder,
    otherwise: "masks/ inside the folder, if it is there",
    help: "where the subject is, white or a cut-out, a.png for a.jpg",
  },
  caption: {
    type: text,
    many: true,
    otherwise: '"photo of a {}" and "{}"',
    help: "caption of pictures without one",
  },
  prior: {
    type: folder,
    help: "pictures of the class, for prior preservation",
  },
  ...BACKGROUND_OPTION,
  flips: { type: flag, help: "also every picture mirrored" },
  ...MODEL_OPTIONS,
  method: {
    type: oneOf(METHODS),
    section: "",
    default: "ed-lora",
    help: METHODS.join(", "),
  },
  preset: {
    type: oneOf(["paper", "official", "ablation"]),
    default: "paper",
    help: "settings of paper, official or ablation",
  },
  steps: { type: count, otherwise: "1000", help: "optimisation steps" },
  batch: { type: count, otherwise: "4", help: "pictures in a step" },
  rank: { type: count, otherwise: "4", help: "rank of the adapter" },
  lrEmbedding: {
    type: rate,
    otherwise: "1e-3 for ed-lora",
    help: "learning rate of the tokens; 0 freezes them",
  },
  lrText: {
    type: rate,
    otherwise: "1e-5 for ed-lora",
    help: "learning rate of the text encoder's adapter",
  },
  lrUnet: {
    type: rate,
    otherwise: "1e-4 for ed-lora",
    help: "learning rate of the UNet's adapter",
  },
  seed: { type: whole({ least: 0 }), default: 0, help: "of all randomness" },
  size: {
    type: count,
    otherwise: "the model's",
    help: "side of the pictures in pixels",
  },
  averageClass: {
    type: flag,
    help: "a class word of several tokens is their mean",
  },
  out: {
    type: file,
    section: "",
    otherwise: "out/NAME.safetensors",
    help: "where the concept goes",
  },
  dtype: { ...DTYPE_OPTION.dtype, otherwise: "F32" },
  fresh: { type: flag, help: "do not continue a run that was stopped" },
  ...BACKEND_OPTION,
});

/** What the command line asks for. */
export type TrainRequest = Values<typeof OPTIONS>;

/** The method, with what the command line changes in it. */
function methodOf(request: TrainRequest): Method {
  const { seed, steps, batch, lrEmbedding, lrText, lrUnet } = request;
  const { lr } = method(request.method, request.preset).train;
  return method(request.method, request.preset, {
    seed,
    steps,
    batch,
    lr: {
      embedding: lrEmbedding ?? lr.embedding,
      textEncoder: lrText ?? lr.textEncoder,
      unet: lrUnet ?? lr.unet,
    },
  });
}

/**
 * Trains the concept and writes it.
 *
 * @param request What is asked for.
 * @throws Before work starts, if files are missing, the output cannot be
 * written, the backend is not available or something does not fit.
 */
export async function runTrain(request: TrainRequest): Promise<void> {
  const { name, out = joinPath("out", `${name}.safetensors`) } = request;
  await mustExist("train", request.images, request.masks, request.prior);
  await assertWritable(parentOf(out));
  const state = `${out.replace(/\.safetensors$/, "")}.state.safetensors`;
  if (request.fresh) await Deno.remove(state).catch(ifThere);
  await startBackend(request.backend);
  const model = await openModel(request);
  try {
    const size = request.size ?? modelSize(model).width;
    const examples = await readExamples(request.images, {
      size,
      captions: request.caption.length > 0 ? request.caption : undefined,
      masks: request.masks,
      background: request.background,
    });
    const classes: Example[] = request.prior
      ? await readExamples(request.prior, {
        size,
        background: request.background,
        captions: [`photo of a ${request.class}`],
      })
      : [];
    if (
      request.background &&
      ![...examples, ...classes].some(({ transparent }) => transparent)
    ) {
      throw cannot("use --background", "a transparent picture", "none");
    }
    const chosen = methodOf(request);
    const start = await startConcept(model, chosen, {
      name,
      classWord: request.class,
      key: key(chosen.train.seed),
      rank: request.rank,
      overrides: request.averageClass ? { severalTokens: "mean" } : undefined,
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
        prior,
        onRecord({ step, total, loss }) {
          smooth = smooth === undefined ? loss : 0.95 * smooth + 0.05 * loss;
          progress.update("training", step + 1, total);
        },
      });
      progress.finish();
      try {
        await saveConcept(out, concept, model, { dtype: request.dtype });
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
export const trainCommand: Command<TrainRequest> = command({
  name: "train",
  summary: "train a concept from pictures",
  usage: "deno task train --name NAME --class WORD --images FOLDER [options]",
  about:
    `Trains a concept from pictures and writes it as one .safetensors file, in the
format of the official Mix-of-Show code. A run that is stopped continues.`,
  options: OPTIONS,
  examples: [
    "deno task train --name rex --class dog --images photos/rex",
    "deno task train --name rex --class dog --images photos/rex \\\n" +
    "    --model sd-v1-5 --backend webgpu --steps 1500",
  ],
  request: (values) => values,
  run: runTrain,
});
