/**
 * `deno task convert`: rewrites a LoRA or a model in another format.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { isModelFolder } from "../formats/load_model.ts";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import { convertLora } from "../formats/convert.ts";
import { type DialectId, DIALECTS } from "../formats/lora.ts";
import { saveLora } from "../formats/lora_write.ts";
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
import { type Command, command } from "./command.ts";
import { baseFor } from "./loras.ts";
import {
  hostBackend,
  localModel,
  MODEL_DETAILS,
  MODEL_OPTIONS,
  mustExist,
  openModel,
  openNetworks,
} from "./models.ts";
import {
  columns,
  DTYPE_OPTION,
  file,
  flag,
  givenOptions,
  oneOf,
  optionTable,
  outputFile,
  type Values,
  whole,
} from "./options.ts";
import { createProgress } from "./progress.ts";

const LORA_TARGETS: readonly DialectId[] = DIALECTS.map(({ id }) => id);
const MODEL_TARGETS = ["folder", "single-file"] as const;

const { model: _model, ...SINGLE_FILE_OPTIONS } = MODEL_OPTIONS;

const OPTIONS = optionTable({
  from: {
    type: file,
    argument: true,
    needed: true,
    hint: "IN",
    help:
      "a LoRA (safetensors, .pth or .bin of tensors, a PEFT folder) or a model " +
      "(a diffusers folder, one .safetensors, or a name on the hub)",
  },
  out: {
    type: file,
    argument: true,
    needed: true,
    hint: "OUT",
    help:
      "a .safetensors file; with --to folder a folder; with --to peft either " +
      "(in a folder the scales stay apart from the weights)",
  },
  to: {
    type: oneOf([...LORA_TARGETS, ...MODEL_TARGETS]),
    hint: "FORMAT",
    needed: true,
    help: "one of the formats below",
  },
  base: {
    name: "model",
    type: file,
    hint: "MODEL",
    otherwise: "the one that fits",
    help:
      "the model that a LoRA is for: sd15, sd21, a folder, a file or a name on " +
      "the hub",
  },
  dtype: { ...DTYPE_OPTION.dtype, otherwise: "a LoRA's own, else F32" },
  withoutTokens: { type: flag, help: "leave learned tokens out" },
  tokens: {
    type: outputFile(".safetensors"),
    help:
      "file for a LoRA's learned tokens (learned_embeds), where the format " +
      "has no place for them",
  },
  differenceTo: {
    type: file,
    hint: "BASE",
    help:
      "write the difference of two models, IN − BASE, as a LoRA, by singular " +
      "value decomposition",
  },
  rank: {
    type: whole({ least: 1 }),
    otherwise: "32",
    help: "rank of that LoRA",
  },
  ...SINGLE_FILE_OPTIONS,
});

/** What the command line asks for. */
export type ConvertRequest = Values<typeof OPTIONS>;

/** Refuses options that do not go together. */
function checked(request: ConvertRequest): ConvertRequest {
  const { out, to, differenceTo, rank } = request;
  const what = "convert";
  if (differenceTo !== undefined && isModelTarget(to)) {
    throw cannot(what, "a LoRA format with --difference-to", `--to ${to}`);
  }
  if (rank !== undefined && differenceTo === undefined) {
    throw cannot(what, "--rank with --difference-to", "--rank alone");
  }
  if (request.tokens !== undefined && request.withoutTokens) {
    throw cannot(what, "--tokens or --without-tokens", "both");
  }
  // What has a file's ending is no folder.
  const outputs = [
    ...to === "folder" || to === "peft" ? ["folder"] : [],
    ...to === "folder" ? [] : [".safetensors file"],
  ];
  const ending = /\.(safetensors|ckpt|pth?|bin)$/.exec(out)?.[0] ?? "folder";
  if (!outputs.some((one) => one.startsWith(ending))) {
    throw cannot(what, `a ${outputs.join(" or a ")} to write`, out);
  }
  return request;
}

/** Says that there are no tokens to leave out. */
function sayNoTokens(path: string): void {
  console.error(`--without-tokens changes nothing: ${path} has none`);
}

function isModelTarget(to: string): to is typeof MODEL_TARGETS[number] {
  return (MODEL_TARGETS as readonly string[]).includes(to);
}

/** Whether a path is a model, whole or not, and no LoRA. */
async function isModel(path: string): Promise<boolean> {
  if (await isModelFolder(path)) {
    for (const part of ["unet", "vae", "text_encoder"]) {
      const config = joinPath(path, part, "adapter_config.json");
      if (await exists(joinPath(path, part)) && !await exists(config)) {
        return true;
      }
    }
    return false;
  }
  using file = await openTensors(path);
  return partsIn(file.entries.keys()).size > 0;
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
  const ofModels = ["differenceTo", ...MODEL_DETAILS] as const;
  const unused = givenOptions(OPTIONS, request, ofModels);
  if (unused.length > 0) {
    throw cannot(what, `a model with ${unused.join(", ")}`, "a LoRA");
  }
  const { name, base } = await baseFor(from, request.base);
  const { dialect, layers, tokens: held, written } = await convertLora(
    from,
    out,
    {
      to,
      base,
      dtype,
      tokens,
      withoutTokens: request.withoutTokens,
    },
  );
  if (request.withoutTokens && held.length === 0) sayNoTokens(from);
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
  const { from } = request;
  const [unused] = givenOptions(OPTIONS, request, ["tokens", "base"]);
  if (unused) {
    throw cannot(`convert ${from}`, `a LoRA with ${unused}`, "a model");
  }
  if (!isModelTarget(to) && differenceTo === undefined) {
    throw cannot(
      `convert ${request.from}`,
      `--to ${
        MODEL_TARGETS.join(" or ")
      } for a model, or a LoRA format with --difference-to`,
      to,
    );
  }
  if (differenceTo !== undefined && request.vae !== undefined) {
    throw cannot(
      `convert ${from}`,
      "no --vae with --difference-to, which no LoRA holds",
      request.vae,
    );
  }
  const single = !await isModelFolder(from);
  const any = { anyPurpose: true };
  const source = { ...request, model: from };
  if (to !== "folder" && single) {
    // No single file holds a tokenizer, so none is needed.
    if (request.tokenizer !== undefined) {
      throw cannot(
        `convert ${from}`,
        "--to folder with --tokenizer",
        `--to ${to}`,
      );
    }
    if (withoutTokens) sayNoTokens(from);
    const networks = await openNetworks(source, any);
    try {
      sayPurpose(from, networks);
      if (to === "single-file") {
        await saveSingleFile(out, networks, { dtype, withoutTokens });
      } else await difference(request, networks);
      return;
    } finally {
      disposeNetworks(networks);
    }
  }
  const model = await openModel(source, any);
  try {
    sayPurpose(from, model);
    if (withoutTokens && !model.added) sayNoTokens(from);
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
  const base = {
    ...request,
    model: path,
    vae: undefined,
    unet: undefined,
    textEncoder: undefined,
  };
  return await isModelFolder(path)
    ? await openModel(base, { anyPurpose: true })
    : await openNetworks(base, { anyPurpose: true });
}

/** A LoRA of the difference of a model to another. */
async function difference(
  request: ConvertRequest,
  model: ModelParts & Pick<Model, "added">,
): Promise<void> {
  const { to, out, dtype = "F32", rank = 32, withoutTokens } = request;
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
async function runConvert(request: ConvertRequest): Promise<void> {
  const { out, tokens } = request;
  const from = await localModel(request.from);
  await mustExist("convert", from);
  await assertDistinct(
    "convert",
    { OUT: out, "--tokens": tokens },
    { IN: from },
  );
  if (out.endsWith(".safetensors")) await assertWritableFile(out);
  else await assertWritable(out);
  if (tokens !== undefined) await assertWritableFile(tokens);
  await hostBackend();
  const local = { ...request, from };
  if (await isModel(from)) {
    await convertModel(local);
    console.log(out);
  } else await toDialect(local);
}

/** `deno task convert`. */
export const convertCommand: Command<ConvertRequest> = command({
  name: "convert",
  summary: "rewrite a LoRA or a model in another format",
  usage: "deno task convert IN OUT --to FORMAT [options]",
  about: `Rewrites a LoRA, or a whole model, in another format. Nothing is lost
silently: what a format cannot hold is an error.`,
  options: OPTIONS,
  notes: `Formats of a LoRA:
${columns(DIALECTS.map((d) => [d.id, d.describe]), 17)}
Formats of a model:
  folder         diffusers
  single-file    one .safetensors (LDM) for the other tools`,
  examples: [
    "deno task convert hero.safetensors hero-kohya.safetensors --to kohya",
    "deno task convert old.pth rex.safetensors --to official --dtype F16",
    "deno task convert out/fused fused.safetensors --to single-file \\\n    " +
    "--dtype F16 --without-tokens",
    "deno task convert out/fused fused-lora.safetensors --to kohya \\\n    " +
    "--difference-to sd-v1-5 --rank 64 --without-tokens",
  ],
  request: checked,
  run: runConvert,
});
