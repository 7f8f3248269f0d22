/**
 * What the tests share: a test per backend, numbers compared with a tolerance,
 * tensors counted, fixtures read.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import { type BackendName, selectBackend } from "../src/core/backend.ts";

/** Where `.ci/run` says so, a machine without WebGPU fails the tests. */
const webgpuRequired = Deno.env.get("MIX_OF_SHOW_REQUIRE_WEBGPU") === "1";

let adapterFound: Promise<boolean> | undefined;

/** Whether this machine has a WebGPU adapter, a software one included. */
export function hasWebgpu(): Promise<boolean> {
  return adapterFound ??= (async () => {
    const gpu = (navigator as { gpu?: GPU }).gpu;
    return await gpu?.requestAdapter().catch(() => null) != null;
  })();
}

/**
 * Registers a test for each backend: on wasm always, on webgpu where there is
 * an adapter. Without one the webgpu test is ignored, or fails if the
 * environment has `MIX_OF_SHOW_REQUIRE_WEBGPU=1`.
 *
 * @param name The test's name; the backend's is added in brackets.
 * @param fn The test; the backend is selected before it runs.
 * @param backends Which backends it is about.
 *
 * @example
 * ```ts ignore
 * forEachBackend("softmax sums to one", async (backend) => {
 *   const sum = tf.tidy(() => tf.softmax(tf.tensor1d([1, 2])).sum());
 *   close(await sum.data(), [1], tolerance(backend, 1e-6));
 * });
 * ```
 */
export function forEachBackend(
  name: string,
  fn: (backend: BackendName, t: Deno.TestContext) => void | Promise<void>,
  backends: readonly BackendName[] = ["wasm", "webgpu"],
): void {
  for (const backend of backends) {
    Deno.test({
      name: `${name} [${backend}]`,
      ignore: backend === "webgpu" && !webgpuFound && !webgpuRequired,
      fn: async (t) => {
        await selectBackend(backend);
        await fn(backend, t);
      },
    });
  }
}

// Tests are registered synchronously, so this has to be known by then.
const webgpuFound = await hasWebgpu();
if (!webgpuFound && !webgpuRequired) {
  console.warn("no WebGPU adapter here: the webgpu tests are ignored");
}

/**
 * How much of a tolerance a backend may use. WGSL lets division, `exp` and
 * `inverseSqrt` be off by several units in the last place and drivers fuse
 * multiply-adds, so webgpu gets ten times what the exact-IEEE backends get.
 *
 * @param backend The backend the value was computed on.
 * @param base The absolute tolerance on wasm and cpu.
 */
export function tolerance(backend: BackendName, base: number): number {
  return backend === "webgpu" ? 10 * base : base;
}

/**
 * Throws unless every number is within an absolute tolerance of the expected
 * one; `NaN` and a different length never are. The message names the largest
 * error, its place and both values there.
 */
export function close(
  actual: number | ArrayLike<number>,
  expected: number | ArrayLike<number>,
  tolerance: number,
  what = "values",
): void {
  const a = typeof actual === "number" ? [actual] : actual;
  const e = typeof expected === "number" ? [expected] : expected;
  assertEquals(a.length, e.length, `${what}: number of elements`);
  let worst = 0;
  let place = -1;
  for (let i = 0; i < a.length; i++) {
    if (Object.is(a[i], e[i])) continue; // equal infinities have no difference
    const error = Math.abs(a[i] - e[i]);
    if (error <= worst) continue;
    worst = error;
    place = i;
    if (Number.isNaN(error)) break;
  }
  assert(
    worst <= tolerance,
    `${what}: maximum error ${worst.toExponential(3)} at ${place} of ` +
      `${a.length} (actual ${a[place]}, expected ${e[place]}) is above the ` +
      `tolerance ${tolerance.toExponential(1)}`,
  );
}

/**
 * Runs a function and throws if it leaves more or fewer tensors than there
 * were before; the function disposes what it makes.
 */
export async function noLeak(fn: () => unknown): Promise<void> {
  const before = tf.memory().numTensors;
  await fn();
  assertEquals(tf.memory().numTensors - before, 0, "tensors left behind");
}

/** Works in a folder that is gone afterwards. */
export async function inFolder(
  work: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await work(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** The path of a file under tests/fixtures. */
export function fixturePath(path: string): string {
  return new URL(`./fixtures/${path}`, import.meta.url).pathname;
}

/** The bytes of a file under tests/fixtures. */
export function fixture(path: string): Promise<Uint8Array<ArrayBuffer>> {
  return Deno.readFile(fixturePath(path));
}

/** A JSON file under tests/fixtures; the caller states its shape. */
export async function fixtureJson<T>(path: string): Promise<T> {
  return JSON.parse(await Deno.readTextFile(fixturePath(path)));
}
