/**
 * Where the weights are that this library comes with.
 *
 * @module
 */

/**
 * The folder of the embedded model, beside this library: on a disk, on a
 * server, or in an npm package.
 */
export const embeddedModel: URL = new URL(
  "../../models/micro/",
  import.meta.url,
);

const NETWORK = [
  "config.json",
  "diffusion_pytorch_model.safetensors",
  "metrics.csv",
];
const TOKENIZER = [
  "merges.txt",
  "special_tokens_map.json",
  "tokenizer_config.json",
  "vocab.json",
];
const CLIP = [
  ...["config.json", "metrics.csv", "model.safetensors"],
  ...["preprocessor_config.json", ...TOKENIZER],
];

const folders: Readonly<Record<string, readonly string[]>> = {
  adapter: NETWORK,
  clip_b: CLIP,
  scheduler: ["scheduler_config.json"],
  text_encoder: ["config.json", "model.safetensors"],
  tokenizer: TOKENIZER,
  unet: NETWORK,
  vae: NETWORK,
};

/**
 * Files of the embedded model, for servers, which do not list them. CLIP A,
 * which only pretraining needs, is not in the package.
 */
export const embeddedFiles: readonly string[] = [
  "model_index.json",
  "evaluator.json",
  ...Object.entries(folders).flatMap(([folder, names]) =>
    names.map((name) => `${folder}/${name}`)
  ),
];
