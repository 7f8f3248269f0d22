/**
 * `deno task convert`: rewrites a LoRA or a model in another format.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import { convertLora } from "../formats/convert.ts";
import { type DialectId, DIALECTS, saveLora } from "../formats/lora.ts";
import { extractLora } from "../formats/extract.ts";
import { disposeAdapter, sites } from "../customize/lora.ts";
import {
  assertDistinct,
  assertWritable,
  assertWritableFile,
  exists,
  joinPath,
} from "../io/files.ts";
import { openTensors } from "../formats/pickle.ts";
import { saveSingleFile } from "../formats/ldm.ts";
import { partsIn } from "../formats/ldm_config.ts";
import {
  disposeModel,
  type Model,
  type ModelParts,
  saveModel,
} from "../models/model.ts";
import { specialPurpose } from "../models/purpose.ts";
import { createTokenizer } from "../models/tokenizer.ts";
import { type Command, dtypeOf, EXIT_CODES, readOptions } from "./command.ts";
import { baseFor } from "./loras.ts";
import {
  hostBackend,
  localModel,
  MODEL_OPTIONS,
  modelOf,
  type ModelRequest,
  mustExist,
  openModel,
  openNetworks,
} from "./models.ts";
import { createProgress } from "./progress.ts";

const LORA_TARGETS: readonly DialectId[] = DIALECTS.map(({ id }) => id);
const MODEL_TARGETS = ["folder", "single-file"] as const;

const HELP = `deno task convert IN OUT --to FORMAT [options]

Rewrites a LoRA, or a whole model, in another format. Nothing is lost without a
word: what a format cannot hold is an error.

For a LoRA (IN: safetensors, a .pth or .bin of tensors, a PEFT folder; OUT: a
file, or with peft also a folder, in which scales stay apart from the weights):
${DIALECTS.map((d) => `  ${d.id.padEnd(15)}${d.describe}`).join("\n")}
For a model (IN: a diffusers folder, one .safetensors, or a name on the hub):
  folder         diffusers
  single-file    one .safetensors (LDM) for the other tools

  --to FORMAT          one of these
  --model MODEL        the model a LoRA is for: sd15, sd21, a folder, a file or
                       a name on the hub (default: the one that fits)
  --dtype TYPE         F32, F16 or BF16 (of a LoRA its own, else F32)
  --without-tokens     leave learned tokens out
  --tokens FILE        a LoRA's learned tokens go there (learned_embeds), where
                       the format has no place for them
  --difference-to BASE IN and BASE are models: their difference as a LoRA, by
                       singular value decomposition
  --rank N             rank of that LoRA (32)
  --variant NAME       of a folder's weights, such as fp16
  --tokenizer FOLDER   CLIP's tokenizer for a single file
  --prediction NAME    epsilon or v_prediction, where a single file does not say
  --vae PATH           another file's or folder's VAE instead of the model's, as
                       for checkpoints without one
  --unet PATH          another's UNet
  --text-encoder PATH  another's text encoder
  --help               this text

${EXIT_CODES}

Examples:
  deno task convert hero.safetensors hero-kohya.safetensors --to kohya
  deno task convert old.pth rex.safetensors --to official --dtype F16
  deno task convert out/fused fused.safetensors --to single-file --dtype F16 \\
    --without-tokens
  deno task convert out/fused fused-lora.safetensors --to kohya \\
    --difference-to sd-v1-5 --rank 64 --without-tokens
`;

/** What the command line asks for. */
export interface ConvertRequest extends ModelRequest {
  readonly from: string;
  readonly out: string;
  readonly to: DialectId | typeof MODEL_TARGETS[number];
  /** The model a LoRA is for, if the user said. */
  readonly base?: string;
  readonly dtype?: "F32" | "F16" | "BF16";
  /** Where a LoRA's tokens go. */
  readonly tokens?: string;
  readonly withoutTokens: boolean;
  readonly differenceTo?: string;
  readonly rank: number;
}

/**
 * Reads the command line.
 *
 * @param args Arguments after the command's name.
 * @returns What is asked for; nothing if it is help.
 * @throws If an option is unknown or a value does not fit.
 */
export function parseConvert(
  args: readonly string[],
): ConvertRequest | undefined {
  const what = "convert";
  const options = readOptions(what, args, {
    text: [
      ...MODEL_OPTIONS,
      "to",
      "dtype",
      "tokens",
      "difference-to",
      "rank",
    ],
    flags: ["without-tokens"],
    rest: { least: 2, most: 2, what: "IN and OUT" },
  });
  if (options.help) return undefined;
  const to = options.oneOf("to", [...LORA_TARGETS, ...MODEL_TARGETS]);
  if (to === undefined) {
    throw cannot(
      what,
      `--to ${[...LORA_TARGETS, ...MODEL_TARGETS].join(", ")}`,
      "none",
    );
  }
  const [from, out] = options.rest;
  const base = options.text("model");
  const dtype = dtypeOf(options);
  const tokens = options.text("tokens");
  const differenceTo = options.text("difference-to");
  if (differenceTo !== undefined && isModelTarget(to)) {
    throw cannot(what, "a LoRA format with --difference-to", `--to ${to}`);
  }
  if (options.text("rank") !== undefined && differenceTo === undefined) {
    throw cannot(what, "--rank with --difference-to", "--rank alone");
  }
  return {
    ...modelOf(options),
    model: from,
    from,
    out,
    to,
    ...(base === undefined ? {} : { base }),
    ...(dtype === undefined ? {} : { dtype }),
    ...(tokens === undefined ? {} : { tokens }),
    withoutTokens: options.flag("without-tokens"),
    ...(differenceTo === undefined ? {} : { differenceTo }),
    rank: options.number("rank", { whole: true, least: 1 }) ?? 32,
  };
}

function isModelTarget(to: string): to is typeof MODEL_TARGETS[number] {
  return (MODEL_TARGETS as readonly string[]).includes(to);
}

/** Whether a path is a model, whole or not, and no LoRA. */
async function isModel(path: string): Promise<boolean> {
  if ((await Deno.stat(path)).isDirectory) {
    for (const part of ["unet", "vae", "text_encoder"]) {
      const config = joinPath(path, part, "adapter_config.json");
      if (await exists(joinPath(path, part)) && !await exists(config)) {
        return true;
      }
    }
    return false;
  }
  const file = await openTensors(path);
  try {
    return partsIn(file.entries.keys()).size > 0;
  } finally {
    file.close();
  }
}

/** Learned tokens of a model, by how they are written. */
function tokensOf({ added }: Pick<Model, "added">): Map<string, tf.Tensor2D> {
  return new Map(
    Object.entries(added?.sites ?? {}).map(([token, rows]) => {
      // Textual inversion: one vector for all layers.
      const own = new Set(rows).size === 1 ? rows.slice(0, 1) : rows;
      return [
        token,
        tf.tidy(() =>
          tf.concat(
            own.map((row) => tf.slice(added!.vectors, [row, 0], [1, -1])),
            0,
          )
        ) as tf.Tensor2D,
      ];
    }),
  );
}

/** A LoRA in another dialect. */
async function toDialect(request: ConvertRequest): Promise<void> {
  const { from, out, to, dtype, tokens } = request;
  const what = `convert ${from}`;
  if (isModelTarget(to)) {
    throw cannot(what, `--to ${LORA_TARGETS.join(", ")} for a LoRA`, to);
  }
  const { name, base } = await baseFor(from, request.base);
  const { dialect, layers, tokens: held, written } = await convertLora(
    from,
    out,
    {
      to,
      base,
      ...(dtype === undefined ? {} : { dtype }),
      ...(tokens === undefined ? {} : { tokens }),
      withoutTokens: request.withoutTokens,
    },
  );
  console.log(
    `${dialect} for ${name}: ${
      layers.textEncoder + layers.unet
    } layers, ${held.length} tokens`,
  );
  console.log(written.join("\n"));
}

/** A model in another format, or as a LoRA of its difference to another. */
async function convertModel(request: ConvertRequest): Promise<void> {
  const { to, out, dtype = "F32", differenceTo, withoutTokens } = request;
  if (!isModelTarget(to) && differenceTo === undefined) {
    throw cannot(
      `convert ${request.from}`,
      `--to ${
        MODEL_TARGETS.join(" or ")
      } for a model, or a LoRA format with --difference-to`,
      to,
    );
  }
  const single = !(await Deno.stat(request.from)).isDirectory;
  const any = { anyPurpose: true };
  if (to !== "folder" && single) {
    // No single file holds a tokenizer, so none is needed.
    const networks = await openNetworks(request, any);
    try {
      sayPurpose(request.from, networks);
      if (to === "single-file") {
        await saveSingleFile(out, networks, { dtype, withoutTokens });
      } else await difference(request, networks);
      return;
    } finally {
      disposeNetworks(networks);
    }
  }
  const model = await openModel(request, any);
  try {
    sayPurpose(request.from, model);
    if (to === "folder") {
      const { added: _, ...plain } = model;
      return await saveModel(
        out,
        withoutTokens && model.added
          ? { ...plain, tokenizer: trimmed(model) }
          : model,
        { dtype },
      );
    }
    if (to === "single-file") {
      return await saveSingleFile(out, model, { dtype, withoutTokens });
    }
    await difference(request, model);
  } finally {
    disposeModel(model);
  }
}

/** Says what a model is for, if not for text to image. */
function sayPurpose(path: string, { unet, autoencoder }: ModelParts): void {
  const purpose = specialPurpose(
    unet.config.in_channels,
    autoencoder.config.latent_channels,
  );
  if (purpose !== undefined) console.log(`${path}: a model for ${purpose}`);
}

function disposeNetworks({ textEncoder, unet, autoencoder }: ModelParts): void {
  disposeTree([textEncoder.params, unet.params, autoencoder.params]);
}

/** The networks of the model that a difference is to. */
async function openBase(request: ConvertRequest): Promise<ModelParts> {
  const path = await localModel(request.differenceTo!);
  // Networks from elsewhere are the changed model's.
  const { vae: _, unet: __, textEncoder: ___, ...plain } = request;
  const base = { ...plain, model: path };
  return (await Deno.stat(path)).isDirectory
    ? await openModel(base, { anyPurpose: true })
    : await openNetworks(base, { anyPurpose: true });
}

/** A LoRA of the difference of a model to another. */
async function difference(
  request: ConvertRequest,
  model: ModelParts & Pick<Model, "added">,
): Promise<void> {
  const { to, out, dtype = "F32", rank, withoutTokens } = request;
  const base = await openBase(request);
  try {
    const progress = createProgress();
    const total = [base.textEncoder.params, base.unet.params]
      .flatMap((tree) => sites(tree)).length;
    let done = 0;
    const { adapter, layers, lost, residual } = await extractLora(
      base,
      model,
      {
        rank,
        onLayer: () => progress.update("layers", ++done, total, "layer"),
      },
    );
    progress.finish();
    const embeddings = tokensOf(model);
    try {
      await saveLora(
        out,
        withoutTokens ? { adapter } : { adapter, embeddings },
        base,
        to as DialectId,
        { dtype },
      );
    } finally {
      disposeAdapter(adapter);
      tf.dispose([...embeddings.values()]);
    }
    console.log(
      `${layers.length} layers of rank ${rank}, ${
        (100 * residual).toFixed(2)
      } % of the difference left out` +
        (lost.length > 0
          ? `, ${lost.length} parameters with no place in a LoRA`
          : ""),
    );
  } finally {
    disposeNetworks(base);
  }
}

/** The tokenizer without the learned tokens. */
function trimmed({ tokenizer, added }: Model): Model["tokenizer"] {
  const { spec } = tokenizer;
  return createTokenizer({
    ...spec,
    added: spec.added.filter((name) => !added!.names.includes(name)),
  });
}

/**
 * Converts.
 *
 * @param request What is asked for.
 * @throws Before work starts, if a file is missing, broken or not what the
 * format is for, or the output cannot be written.
 */
export async function runConvert(request: ConvertRequest): Promise<void> {
  const { out, to, base } = request;
  const from = await localModel(request.from);
  await mustExist("convert", from);
  const file = /\.safetensors$/.test(out);
  if (to !== "folder" && to !== "peft" && !file) {
    throw cannot("convert", "a .safetensors file to write", out);
  }
  await assertDistinct(
    "convert",
    { OUT: out, "--tokens": request.tokens },
    { IN: from },
  );
  if (file) await assertWritableFile(out);
  else await assertWritable(out);
  if (request.tokens !== undefined) await assertWritableFile(request.tokens);
  await hostBackend();
  const whole = { ...request, from, model: from, ...(base ? { base } : {}) };
  if (await isModel(from)) {
    await convertModel(whole);
    console.log(out);
  } else await toDialect(whole);
}

/** `deno task convert`. */
export const convertCommand: Command<ConvertRequest> = {
  name: "convert",
  summary: "rewrite a LoRA or a model in another format",
  help: HELP,
  parse: parseConvert,
  run: runConvert,
};
