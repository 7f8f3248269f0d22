/**
 * Models of the store: the base with a concept, and fused models, stored as the
 * tensors that differ from the base.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { leaves, type TreeLike, updateAt } from "../core/tree.ts";
import {
  attachConcept,
  disposeConcept,
  releaseTokens,
} from "../customize/concept.ts";
import { loadConcept } from "../formats/concept_file.ts";
import {
  encodeFloat,
  openSafetensors,
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import { disposeModel, type Model } from "../models/model.ts";
import type { ModelRef } from "./specs.ts";
import { pathOf } from "./store.ts";

const COMPONENTS = ["textEncoder", "unet"] as const;

/**
 * Writes the tensors of a fused model that differ from its base, exactly and
 * atomically.
 *
 * @param path File.
 * @param base The base model.
 * @param fused The fused model.
 */
export async function saveFused(
  path: string,
  base: Model,
  fused: Model,
): Promise<void> {
  const tensors: [string, RawTensor][] = [];
  const add = async (name: string, tensor: tf.Tensor) => {
    const data = encodeFloat(await tensor.data() as Float32Array, "F32");
    tensors.push([name, { dtype: "F32", shape: [...tensor.shape], data }]);
  };
  for (const component of COMPONENTS) {
    const old = new Map(leaves(base[component].params as TreeLike));
    for (const [name, leaf] of leaves(fused[component].params as TreeLike)) {
      if (old.get(name) !== leaf) await add(`${component}.${name}`, leaf);
    }
  }
  if (!fused.added) throw cannot("save a fused model", "tokens", "none");
  await add("added", fused.added.vectors);
  await writeSafetensors(path, tensors, {
    names: JSON.stringify(fused.added.names),
    sites: JSON.stringify(fused.added.sites),
  });
}

/** Reads a fused model; unchanged tensors are shared with the base. */
async function loadFused(path: string, base: Model): Promise<Model> {
  const file = await openSafetensors(path);
  try {
    const read = async (name: string): Promise<tf.Tensor> => {
      const raw = await file.read(name);
      return tf.tensor(toFloat32(raw), [...raw.shape]);
    };
    let model = base;
    for (const component of COMPONENTS) {
      const changed = new Map<string, tf.Tensor>();
      for (const name of file.entries.keys()) {
        if (!name.startsWith(`${component}.`)) continue;
        changed.set(name.slice(component.length + 1), await read(name));
      }
      const params = updateAt(
        base[component].params as TreeLike,
        changed.keys(),
        (_, name) => changed.get(name),
      );
      model = { ...model, [component]: { ...base[component], params } };
    }
    const names: string[] = JSON.parse(file.metadata.names);
    return {
      ...model,
      tokenizer: base.tokenizer.withAddedTokens(names),
      added: {
        names,
        vectors: await read("added") as tf.Tensor2D,
        sites: JSON.parse(file.metadata.sites),
      },
    };
  } finally {
    file.close();
  }
}

/**
 * Runs a function with a model of the store, then frees the tensors that are
 * not the base's.
 *
 * @param base The base model.
 * @param store Folder of the store.
 * @param ref Which model.
 * @param fn The function.
 */
export async function withModel<T>(
  base: Model,
  store: string,
  ref: ModelRef,
  fn: (model: Model) => Promise<T>,
): Promise<T> {
  switch (ref.type) {
    case "base":
      return await fn(base);
    case "concept": {
      const concept = await loadConcept(pathOf.concept(store, ref.id), base);
      const { alpha = 1 } = ref;
      const model = attachConcept(base, concept, { alpha });
      try {
        return await fn(model);
      } finally {
        releaseTokens(model, base);
        disposeConcept(concept);
      }
    }
    case "fused": {
      const model = await loadFused(pathOf.fused(store, ref.id), base);
      try {
        return await fn(model);
      } finally {
        disposeModel(model, base);
      }
    }
  }
}
