import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { createPool, hardwareWorkers, type Pool } from "../../src/core/pool.ts";
import type { PoolHandlers } from "./pool_worker.ts";

const module = new URL("./pool_worker.ts", import.meta.url);

function start(
  workers: number,
  onEvent?: (event: string, worker: number) => void,
): Promise<Pool<PoolHandlers>> {
  return createPool<PoolHandlers, string>({
    workers,
    module,
    init: { backend: "wasm", factor: 3 },
    onEvent,
  });
}

Deno.test("a pool keeps the order of jobs, whatever the worker count", async () => {
  const jobs = Array.from({ length: 9 }, (_, x) => ({ x, wait: (9 - x) % 4 }));
  for (const workers of [1, 2, 3]) {
    using pool = await start(workers);
    assertEquals(await pool.map("scale", jobs), jobs.map(({ x }) => 3 * x));
  }
});

Deno.test("a pool runs tfjs on wasm, moves buffers and passes events", async () => {
  const events: string[] = [];
  using pool = await start(2, (event, worker) => {
    assertEquals(event, `wasm ${worker}`);
    events.push(event);
  });
  const n = 33;
  const a = Float32Array.from({ length: n * n }, (_, i) => (i % 7) - 3);
  const eye = Float32Array.from(
    { length: n * n },
    (_, i) => i % (n + 1) === 0 ? 1 : 0,
  );
  const results = await pool.map("multiply", [
    { a, b: eye, n },
    { a: eye, b: a, n },
  ]);
  assertEquals(results, [a, a]);
  assertEquals(events.length, 2);

  const away = a.slice();
  const job = { a: away, b: eye, n };
  const result = await pool.run("multiply", job, { transfer: [away.buffer] });
  assertEquals(result, a);
  assertEquals(away.length, 0);
});

Deno.test("workers write into shared memory", async () => {
  using pool = await start(1);
  const shared = new Float32Array(new SharedArrayBuffer(16));
  await pool.run("fill", shared);
  assertEquals([...shared], [7, 7, 7, 7]);
});

Deno.test("each reaches every worker", async () => {
  using pool = await start(3);
  await pool.each("setFactor", 10);
  const jobs = Array.from({ length: 6 }, () => ({ x: 1, wait: 5 }));
  assertEquals(await pool.map("scale", jobs), jobs.map(() => 10));
});

Deno.test("an error in a job keeps name, message and stack; the pool goes on", async () => {
  using pool = await start(2);
  const error = await assertRejects(
    () => pool.run("breakDown", "no such thing"),
    Error,
    "no such thing",
  );
  assertEquals(error.name, "RangeError");
  assert(error.stack!.includes("pool_worker.ts"), error.stack);
  assert(error.stack!.includes("in worker"), error.stack);
  await assertRejects(() => pool.map("breakDown", ["a", "b", "c", "d"]), Error);
  assertEquals(await pool.run("scale", { x: 2, wait: 0 }), 6);
  await assertRejects(
    () => pool.run("unknown" as "scale", { x: 1, wait: 1 }),
    Error,
    "Cannot run a job: expected one of init, scale",
  );
});

Deno.test("a crash, a failing init or a missing module rejects", async () => {
  using pool = await start(1);
  await assertRejects(() => pool.run("crash", null), Error, "out of reach");
  await assertRejects(() => pool.run("scale", { x: 1, wait: 0 }), Error);
  await assertRejects(
    () =>
      createPool<PoolHandlers>({
        workers: 2,
        module,
        init: { backend: "cpu", factor: 1, broken: true },
      }),
    Error,
    "init broke",
  );
  await assertRejects(
    () =>
      createPool({
        workers: 1,
        module: new URL("./no_such_worker.ts", import.meta.url),
      }),
    Error,
    "stopped",
  );
});

Deno.test("closing a pool rejects unfinished jobs and later ones", async () => {
  const pool = await start(1);
  const slow = pool.run("scale", { x: 1, wait: 10_000 });
  const waiting = pool.run("scale", { x: 1, wait: 0 });
  const results = Promise.allSettled([slow, waiting]);
  pool.close();
  pool.close();
  for (const { status } of await results) assertEquals(status, "rejected");
  await assertRejects(
    () => pool.run("scale", { x: 1, wait: 0 }),
    Error,
    "closed",
  );
});

Deno.test("hardwareWorkers limits and checks the wish", async () => {
  const all = navigator.hardwareConcurrency;
  assertEquals(hardwareWorkers(), all);
  assertEquals(hardwareWorkers(1), 1);
  assertEquals(hardwareWorkers(1e6), all);
  for (const bad of [0, -1, 1.5, NaN]) {
    assertThrows(() => hardwareWorkers(bad), Error, "Cannot start workers");
  }
  await assertRejects(
    () => createPool({ workers: 0, module }),
    Error,
    "Cannot create a worker pool",
  );
});

Deno.test("a job can be given to one worker, and waits for it", async () => {
  const seen: number[] = [];
  using pool = await start(3, (_, worker) => void seen.push(worker));
  const one = { a: Float32Array.of(2), b: Float32Array.of(3), n: 1 };
  const results = await Promise.all(
    [2, 0, 2, 1, 2].map((worker) => pool.run("multiply", one, { worker })),
  );
  assertEquals(results, new Array(5).fill(Float32Array.of(6)));
  assertEquals(seen.sort(), [0, 1, 2, 2, 2]);
  await assertRejects(
    () => pool.run("multiply", one, { worker: 3 }),
    Error,
    "a worker from 0 to 2",
  );
});
