import { assert, assertEquals, assertRejects } from "@std/assert";
import * as tf from "@tensorflow/tfjs";
import {
  type BackendChoice,
  type BackendInfo,
  selectBackend,
} from "../../src/core/backend.ts";
import { kernelsRegistered } from "../../src/core/kernels/register.ts";

async function sixes(): Promise<number[]> {
  const y = tf.tidy(() => tf.matMul(tf.ones([2, 3]), tf.fill([3, 2], 2)));
  const values = [...await y.data()];
  y.dispose();
  return values;
}

Deno.test("wasm and cpu can be chosen and compute; choosing again is harmless", async () => {
  for (const name of ["cpu", "wasm", "cpu", "wasm", "wasm"] as const) {
    // One thread on purpose: how many there are depends on the machine.
    const info = await selectBackend(name, { threads: 1 });
    assertEquals(info, {
      ...{ name, note: "", describe: `backend ${name}` },
      ...(name === "wasm" && { threads: 1 }),
    });
    assertEquals(tf.getBackend(), name);
    assertEquals(await sixes(), [6, 6, 6, 6]);
  }
  assert(kernelsRegistered());
});

Deno.test("auto says in one line what it took and why nothing faster", async () => {
  const info = await selectBackend();
  assertEquals(tf.getBackend(), info.name);
  assert(info.describe.startsWith(`backend ${info.name}`));
  assert(!info.describe.includes("\n"));
  if (info.name !== "webgpu") {
    assert(info.note.startsWith("no webgpu: "), info.note);
    assert(info.describe.includes(info.note));
  } else {
    assert(info.adapter);
  }
  assertEquals(await sixes(), [6, 6, 6, 6]);
});

Deno.test("explicit webgpu computes on any adapter or says what is missing", async () => {
  const gpu = (navigator as { gpu?: GPU }).gpu;
  if (await gpu?.requestAdapter()) {
    const info = await selectBackend("webgpu");
    assertEquals(info.name, "webgpu");
    assert(info.adapter);
    assert(info.describe.includes(info.adapter));
    assertEquals(await sixes(), [6, 6, 6, 6]);
  } else {
    await assertRejects(
      () => selectBackend("webgpu"),
      Error,
      "expected webgpu to be available, got no webgpu: ",
    );
  }
  await selectBackend("wasm");
});

Deno.test("a machine without navigator.gpu gets wasm, and an error for webgpu", async () => {
  const original = Object.getOwnPropertyDescriptor(navigator, "gpu");
  Object.defineProperty(navigator, "gpu", {
    value: undefined,
    configurable: true,
  });
  try {
    const info = await selectBackend("auto");
    assertEquals(info.name, "wasm");
    assertEquals(info.note, "no webgpu: this runtime has none");
    await assertRejects(
      () => selectBackend("webgpu"),
      Error,
      "Cannot select a backend: expected webgpu to be available",
    );
  } finally {
    if (original) Object.defineProperty(navigator, "gpu", original);
    else delete (navigator as { gpu?: unknown }).gpu;
  }
});

Deno.test("an unknown backend is refused", async () => {
  await assertRejects(
    () => selectBackend("cuda" as BackendChoice),
    Error,
    "Cannot select a backend: expected auto, webgpu, wasm or cpu, got cuda",
  );
});

Deno.test("wasm starts in a worker", async () => {
  const backend = new URL("../../src/core/backend.ts", import.meta.url).href;
  const code = `import { selectBackend } from ${JSON.stringify(backend)};
    self.postMessage(await selectBackend("wasm"));`;
  const url = `data:text/javascript,${encodeURIComponent(code)}`;
  const worker = new Worker(url, { type: "module" });
  const info = await new Promise<BackendInfo>((resolve, reject) => {
    worker.onmessage = (event) => resolve(event.data);
    worker.onerror = (event) => {
      event.preventDefault();
      reject(new Error(event.message));
    };
  });
  worker.terminate();
  assertEquals(info.name, "wasm");
});
