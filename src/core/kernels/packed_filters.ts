/**
 * Filters as Winograd's convolution wants them: transformed and packed.
 *
 * A filter that is used again and again, such as a frozen one in training or any
 * in sampling, is packed once and kept until its tensor is disposed of.
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
import { address, simdFor, type WasmBackend, withScratch } from "./simd.ts";

/** What is known of a filter in one direction: 0 is seen once, else where it is. */
type Packed = [forward: number | undefined, backward: number | undefined];

const kept = new WeakMap<WasmBackend, Map<object, Packed>>();

/** What is kept for a backend; its tensors' end is heard of. */
function keptBy(backend: WasmBackend): Map<object, Packed> {
  const before = kept.get(backend);
  if (before) return before;
  const packed = new Map<object, Packed>();
  kept.set(backend, packed);
  const dispose = backend.disposeData;
  backend.disposeData = (id, force) => {
    const gone = dispose.call(backend, id, force);
    if (gone && packed.has(id)) {
      for (const at of packed.get(id)!) if (at) backend.wasm._free(at);
      packed.delete(id);
    }
    return gone;
  };
  return packed;
}

/**
 * Calls `f` with the address of the packed filter.
 *
 * @param backend The backend.
 * @param filter The filter [3, 3, a, b].
 * @param cin Input channels of the convolution that is done, b if backwards.
 * @param cout Its output channels.
 * @param backward Whether it is the gradient with respect to the input.
 * @param f Uses it.
 */
export function withPackedFilter(
  backend: WasmBackend,
  filter: tf.TensorInfo,
  cin: number,
  cout: number,
  backward: boolean,
  f: (packed: number) => void,
): void {
  const simd = simdFor(backend);
  const floats = simd.winogradPacked(cin, cout);
  const pack = (to: number) =>
    withScratch(backend, 16 * cin * cout, (s) =>
      simd.winogradPack(
        address(backend, filter),
        cin,
        cout,
        ...(backward ? [1, cin, 1] : [cout, 1, 0]),
        to,
        s,
      ));
  const all = keptBy(backend);
  const own = all.get(filter.dataId) ?? [undefined, undefined];
  all.set(filter.dataId, own);
  const side = backward ? 1 : 0;
  // Once may be all: a filter that is trained is another one every step.
  if (own[side] === undefined) own[side] = 0;
  else if (own[side] === 0) {
    // Address 0: there is no memory to keep it in.
    own[side] = backend.wasm._malloc(4 * floats) >>> 0;
    if (own[side] !== 0) pack(own[side]);
  }
  const at = own[side];
  if (at) return f(at);
  withScratch(backend, floats, (at) => {
    pack(at);
    f(at);
  });
}
