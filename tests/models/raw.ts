/**
 * Parameters as tensors of a file.
 *
 * @module
 */
import { leaves, type TreeLike } from "../../src/core/tree.ts";
import { encodeFloat, type RawTensor } from "../../src/io/safetensors.ts";
import { diskShape, toDisk } from "../../src/models/checkpoint.ts";
import { type Spec, specLeaves } from "../../src/nn/spec.ts";

/** The parameters of a tree as named tensors in PyTorch's layout. */
export async function toRaw<T>(
  spec: Spec<T>,
  params: T,
): Promise<[string, RawTensor][]> {
  const tensors = new Map(leaves(params as TreeLike));
  return await Promise.all(
    specLeaves(spec).map(async ([path, { kind, shape }]) => {
      const values = await tensors.get(path)!.data() as Float32Array;
      return [path, {
        dtype: "F32",
        shape: diskShape(kind, shape),
        data: encodeFloat(toDisk(kind, shape, values), "F32"),
      }] as [string, RawTensor];
    }),
  );
}
