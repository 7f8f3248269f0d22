/**
 * Files of learned tokens alone: diffusers' `learned_embeds` and embeddings of
 * the A1111 web UI.
 *
 * @module
 */
import type { Dialect, LoraHeader } from "./dialect.ts";

/** Where our own files keep a token that its file would have to be called. */
const TOKEN = "mix_of_show.token";

const A1111_KEY = /^(emb_params|string_to_param\.\*)$/;

const noLayers: Pick<Dialect, "names" | "parts" | "scaleRule"> = {
  names: () => () => [],
  parts: {},
  scaleRule: "alpha",
};

const a1111: Dialect = {
  ...noLayers,
  id: "a1111",
  describe: "embeddings of the A1111 web UI; the token is the file's name",
  detect: ({ entries }) =>
    entries.size === 1 && [...entries.keys()].every((k) => A1111_KEY.test(k)),
  tokens: {
    rows: "vectors",
    read: (key, header, name) =>
      A1111_KEY.test(key) ? header.metadata?.[TOKEN] ?? name : undefined,
    write: () => "emb_params",
    grouped: true,
    single: true,
  },
  metadata: (_, [token]): Record<string, string> =>
    token === undefined ? {} : { [TOKEN]: token },
  structural: new RegExp(`^${TOKEN}$`),
};

/** Whether all tensors look like vectors of tokens. */
function onlyVectors({ entries }: LoraHeader, width?: number): boolean {
  const all = [...entries];
  return all.length > 0 && all.every(([key, { shape }]) => {
    const last = shape[shape.length - 1];
    const known = width === undefined
      ? /^<.*>$/.test(key)
      : last === width && !/[.:](weight|alpha|bias|up|down)$/.test(key);
    return known && (shape.length === 1 || shape.length === 2);
  });
}

const learnedEmbeds: Dialect = {
  ...noLayers,
  id: "learned_embeds",
  describe: "diffusers' textual inversion (learned_embeds)",
  detect: onlyVectors,
  tokens: {
    rows: "vectors",
    read: (key) => key,
    write: (token) => token,
    flat: true,
    grouped: true,
  },
};

/** Dialects of files without layers, the most specific first. */
export const EMBEDDING_DIALECTS: readonly Dialect[] = [a1111, learnedEmbeds];
