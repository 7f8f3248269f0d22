/**
 * A dry run of the files in examples/queue: what they start is what the worker
 * accepts, and what a queue needs.
 */
import { assert, assertEquals } from "@std/assert";
import { parse } from "yaml";
import { z } from "zod";
import { workerCommand, type WorkerRequest } from "../../src/cli/worker.ts";
import { exists, root } from "../tools/repository.ts";

const folder = `${root}/examples/queue`;
const read = (name: string) => Deno.readTextFile(`${folder}/${name}`);

/** The request of a container's arguments, variables filled in. */
function request(
  args: readonly string[],
  values: Readonly<Record<string, string>>,
): WorkerRequest {
  const filled = args.map((arg) =>
    arg.replace(/\$\{(\w+)[^}]*\}|\$\((\w+)\)/g, (_, a, b) => {
      const value = values[a ?? b];
      assert(value !== undefined, `no value for ${a ?? b}`);
      return value;
    })
  );
  return workerCommand.parse(filled)!;
}

/** Names of variables without which compose stops. */
const required = (text: string) => text.match(/\$\{\w+:\?[^}]+\}/g) ?? [];

const service = z.strictObject({
  image: z.string().optional(),
  build: z.strictObject({ context: z.string(), dockerfile: z.string() })
    .optional(),
  command: z.array(z.string()),
  ports: z.array(z.string()).optional(),
  volumes: z.array(z.string()),
  depends_on: z.array(z.string()).optional(),
  restart: z.enum(["no", "always", "on-failure", "unless-stopped"]),
});

const compose = z.strictObject({
  name: z.string(),
  services: z.strictObject({ redis: service, worker: service }),
  volumes: z.record(z.string(), z.object({})),
});

Deno.test("the compose file: a safe Redis, workers with arguments that exist", async () => {
  const text = await read("compose.yaml");
  const { services: { redis, worker }, volumes } = compose.parse(parse(text));
  const { queue } = request(worker.command, { QUEUE_PASSWORD: "secret" });
  assertEquals(queue.url, "redis://:secret@redis:6379");
  assertEquals(required(text).length, 2);
  // Both sides see one folder, under the name that the worker is told.
  assertEquals(worker.volumes, [`./store:${queue.store}`]);
  assert(worker.depends_on!.includes("redis"));
  const setting = (name: string) =>
    redis.command[redis.command.indexOf(`--${name}`) + 1];
  assertEquals(setting("maxmemory-policy"), "noeviction");
  assert(setting("requirepass").startsWith("${QUEUE_PASSWORD:?"));
  assert(redis.ports!.every((port) => port.startsWith("127.0.0.1:")));
  for (const volume of redis.volumes) assert(volume.split(":")[0] in volumes);
  const { context, dockerfile } = worker.build!;
  assertEquals(
    new URL(context, `file://${folder}/`).pathname.replace(/\/$/, ""),
    root,
  );
  assert(await exists(dockerfile));
  const tool = await new Deno.Command("docker", {
    args: ["compose", "-f", `${folder}/compose.yaml`, "config", "-q"],
    env: { QUEUE_PASSWORD: "secret" },
  }).output().catch(() => undefined);
  const said = new TextDecoder().decode(tool?.stderr);
  if (
    !tool || /unknown command|not a docker command|unknown short/.test(said)
  ) {
    console.log(
      "no docker compose here: its own check of the file is left out",
    );
  } else assert(tool.success, said);
});

const job = z.strictObject({
  apiVersion: z.literal("batch/v1"),
  kind: z.literal("Job"),
  metadata: z.strictObject({ generateName: z.string().regex(/^[a-z0-9-]+-$/) }),
  spec: z.strictObject({
    parallelism: z.int().min(1),
    backoffLimit: z.int().min(1),
    ttlSecondsAfterFinished: z.int(),
    template: z.strictObject({
      spec: z.strictObject({
        restartPolicy: z.enum(["OnFailure", "Never"]),
        terminationGracePeriodSeconds: z.int().min(5),
        containers: z.tuple([
          z.strictObject({
            name: z.string(),
            image: z.string(),
            args: z.array(z.string()),
            envFrom: z.array(
              z.strictObject({
                secretRef: z.strictObject({ name: z.string() }),
              }),
            ),
            env: z.array(
              z.strictObject({ name: z.string(), value: z.string() }),
            ),
            resources: z.strictObject({
              requests: z.record(z.string(), z.string()),
              limits: z.record(z.string(), z.string()),
            }),
            volumeMounts: z.array(
              z.strictObject({ name: z.string(), mountPath: z.string() }),
            ),
          }),
        ]),
        volumes: z.array(
          z.strictObject({ name: z.string(), emptyDir: z.object({}) }),
        ),
      }),
    }),
  }),
});

Deno.test("the Kubernetes Job: workers that end, with arguments that exist", async () => {
  const text = await read("worker-job.yaml");
  const { spec: { template: { spec } } } = job.parse(parse(text));
  const [{ args, envFrom, env, volumeMounts, resources }] = spec.containers;
  const secret = envFrom[0].secretRef.name;
  const url = "rediss://lab:secret@redis.example:6380";
  // The comment says how the secret is made, with all that is read of it.
  const made = text.split("\n").filter((line) => line.startsWith("#")).join();
  assert(made.includes(`secret generic ${secret}`));
  assert(made.includes(`QUEUE_URL=${url}`));
  for (const name of ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]) {
    assert(made.includes(name) || env.some((one) => one.name === name));
  }
  const { queue, idle, workers } = request(args, { QUEUE_URL: url });
  assertEquals([queue.url, queue.store], [url, "s3://bucket/lab"]);
  // A Job is over when its containers are.
  assert(idle !== undefined);
  assertEquals(resources.requests.cpu, String(workers));
  for (const { name } of volumeMounts) {
    assert(spec.volumes.some((volume) => volume.name === name));
  }
});

Deno.test("the Dockerfile copies and caches files that are there", async () => {
  const lines = (await read("Dockerfile")).replaceAll("\\\n", " ").split("\n");
  const of = (word: string) =>
    lines.filter((line) => line.startsWith(`${word} `))
      .map((line) => line.slice(word.length + 1).trim());
  const copied = of("COPY").flatMap((line) => line.split(/\s+/).slice(0, -1));
  for (const path of copied) assert(await exists(path), path);
  const cached = of("RUN").flatMap((line) => line.match(/src\/\S+/g) ?? []);
  assert(cached.length === 4);
  for (const path of cached) assert(await exists(path), path);
  const [entry] = of("ENTRYPOINT");
  const { tasks } = JSON.parse(await Deno.readTextFile(`${root}/deno.json`));
  // The same as the task's.
  assertEquals(JSON.parse(entry).join(" "), tasks.worker.command);
  const [version] = of("FROM");
  const ci = await Deno.readTextFile(`${root}/.ci/run`);
  assertEquals(version.split(":")[1], /deno_version=(\S+)/.exec(ci)?.[1]);
});
