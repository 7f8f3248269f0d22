/**
 * Throughput and memory of the lab's work by local workers and by workers of a
 * queue, on this machine: `deno run -P=develop tests/tools/queue_bench.ts`.
 *
 * @module
 */
import { selectBackend } from "../../src/core/backend.ts";
import { cannot } from "../../src/core/errors.ts";
import { type LabOptions, withLab } from "../../src/lab/lab.ts";
import { openQueue } from "../../src/lab/open_queue.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { startRedis } from "../lab/redis_server.ts";
import { helped } from "./help.ts";
import { peakMemory, root } from "./repository.ts";

const HELP = `
deno run -P=develop tests/tools/queue_bench.ts [SPECS] [MODEL]

Draws SPECS (default 40) times 2 pictures in 10 steps with MODEL (default a tiny
random one), by 1 and 2 local workers and by 1 and 2 workers of a queue, and
prints a line for each. Starts a Redis and the workers on loopback.
`;

if (helped(HELP)) Deno.exit(0);
const [specs, model] = [Number(Deno.args[0] ?? 40), Deno.args[1]];
if (!Number.isInteger(specs) || specs < 2 || Deno.args.length > 2) {
  throw cannot("measure a queue", "[SPECS] [MODEL]", Deno.args.join(" "));
}

await selectBackend("wasm");
const folder = await Deno.makeTempDir();
const base = model ?? (await writeTinyWorld(folder)).model;
const redis = await startRedis();

/** Peak of a process's memory, MiB. */
async function peak(pid: number): Promise<number> {
  return Math.round(await peakMemory(pid) / 2 ** 20);
}

/** Processor seconds of processes, their threads included. */
async function processor(pids: readonly number[]): Promise<number> {
  const each = await Promise.all(pids.map(async (pid) => {
    const stat = await Deno.readTextFile(`/proc/${pid}/stat`);
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  }));
  return each.reduce((sum, one) => sum + one, 0);
}

/** What drawing took, in seconds. */
interface Took {
  readonly seconds: number;
  readonly processor: number;
}

/** Draws everything once warm. */
async function measure(
  options: LabOptions,
  pids: readonly number[] = [],
): Promise<Took> {
  return await withLab(options, async (lab) => {
    const draw = (name: string, count: number) =>
      lab.draw(Array.from({ length: count }, (_, i) => ({
        model: { type: "base" } as const,
        samples: ["a fox on grass", "a boat"].map((text) => ({
          text,
          noise: [i, name, text],
        })),
        sampling: {
          ...{ sampler: "ddim", steps: 10, guidance: 2, negative: "" } as const,
        },
      })));
    // Models are loaded and kernels compiled in every worker.
    await draw("warm", 4);
    const all = [Deno.pid, ...pids];
    const [before, used] = [performance.now(), await processor(all)];
    await draw("timed", specs);
    return {
      seconds: (performance.now() - before) / 1000,
      processor: await processor(all) - used,
    };
  });
}

/** A line: rates, processor time of a spec, memory, how busy the machine is. */
function report(name: string, { seconds, processor }: Took, memory: string) {
  const rate = (count: number) => (count / seconds).toFixed(1).padStart(6);
  const each = (1000 * processor / specs).toFixed(0).padStart(5);
  const [load] = Deno.loadavg();
  console.log(
    `${name.padEnd(12)}${rate(specs)} specs/s${rate(2 * specs)} pictures/s` +
      `${each} ms of processor per spec  ${memory}  load ${load.toFixed(1)}`,
  );
}

const lab = (name: string) => ({
  ...{ model: base, store: `${folder}/${name}`, backend: "wasm" } as const,
});

for (const workers of [1, 2]) {
  report(
    `${workers} local`,
    await measure({ ...lab(`local${workers}`), workers }),
    `${await peak(Deno.pid)} MiB in all`,
  );
}
for (const count of [1, 2]) {
  const store = `${folder}/queue${count}`;
  const children = Array.from(
    { length: count },
    () =>
      new Deno.Command(Deno.execPath(), {
        args: [
          ...["run", "-q", "-P=online", "src/cli/worker.ts"],
          ...["--queue", redis.url, "--store", store, "--model", base],
          ...["--backend", "wasm", "--workers", "1"],
        ],
        cwd: root,
        stdout: "null",
        stderr: "null",
      }).spawn(),
  );
  const took = await measure({
    ...lab(`queue${count}`),
    workers: 0,
    runner: ({ model }) =>
      openQueue(
        { url: redis.url, store },
        { model, backend: "wasm" },
        store,
      ),
  }, children.map(({ pid }) => pid));
  const memory = await Promise.all(children.map(({ pid }) => peak(pid)));
  report(`${count} of a queue`, took, `${memory.join(", ")} MiB`);
  for (const child of children) child.kill("SIGTERM");
  await Promise.all(children.map(({ status }) => status));
}
await redis[Symbol.asyncDispose]();
await Deno.remove(folder, { recursive: true });
Deno.exit();
