/**
 * A hub on this machine: the tiny model's files under a repository's name, two
 * servers (the hub and the storage it points to), and faults on request.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { scanCachedRepo } from "@huggingface/hub";
import { joinPath } from "../../src/io/files.ts";
import {
  type HubEvent,
  type HubOptions,
  parseHubSpec,
  resolveModel,
} from "../../src/io/hub.ts";
import { disposeModel, loadModel } from "../../src/models/model.ts";
import { fixture } from "../helpers.ts";

async function digest(
  algorithm: "SHA-1" | "SHA-256",
  data: Uint8Array,
): Promise<string> {
  const bytes = await crypto.subtle.digest(algorithm, data.slice());
  return [...new Uint8Array(bytes)].map((byte) =>
    byte.toString(16).padStart(2, "0")
  ).join("");
}

const sha256 = (data: Uint8Array) => digest("SHA-256", data);

const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const REPOSITORY = "some-org/tiny-sd";

interface Seen {
  readonly path: string;
  readonly range: string | null;
  readonly token: string | null;
}

/** Answers a request for a file its own way, or not. */
type Fault = (
  request: Request,
  attempt: number,
  whole: Uint8Array,
) => Response | undefined;

interface World {
  readonly cache: string;
  readonly events: HubEvent[];
  readonly waits: number[];
  /** Requests to the hub. */
  readonly hub: Seen[];
  /** Requests to the storage. */
  readonly storage: Seen[];
  readonly files: Map<string, Uint8Array>;
  /** By path of the file, or of the API. */
  readonly faults: Map<string, Fault>;
  readonly env: Record<string, string>;
  resolve(spec?: string, options?: HubOptions): Promise<string>;
}

const tinyFiles = [
  "model_index.json",
  "scheduler/scheduler_config.json",
  "text_encoder/config.json",
  "text_encoder/model.safetensors",
  "tokenizer/merges.txt",
  "tokenizer/special_tokens_map.json",
  "tokenizer/tokenizer_config.json",
  "tokenizer/vocab.json",
  "unet/config.json",
  "unet/diffusion_pytorch_model.safetensors",
  "vae/config.json",
  "vae/diffusion_pytorch_model.safetensors",
];

const UNET = "unet/diffusion_pytorch_model.safetensors";

/** Bytes from somewhere in a file to its end, as a server answers. */
function part(request: Request, whole: Uint8Array): Response {
  const from = Number(
    request.headers.get("Range")?.match(/^bytes=(\d+)-$/)?.[1] ?? 0,
  );
  const data = whole.slice(from);
  return from === 0 ? new Response(data) : new Response(data, {
    status: 206,
    headers: {
      "Content-Range": `bytes ${from}-${whole.length - 1}/${whole.length}`,
    },
  });
}

/** The same answer, cut off after some bytes: as an error, or politely. */
function cut(response: Response, bytes: number, how: "drop" | "end"): Response {
  const headers = new Headers(response.headers);
  const body = new ReadableStream<Uint8Array>({
    async start(controller) {
      const data = new Uint8Array(await response.arrayBuffer());
      controller.enqueue(data.slice(0, bytes));
      // The bytes must be on their way before the connection breaks.
      await new Promise((resolve) => setTimeout(resolve, 20));
      if (how === "end") controller.close();
      else controller.error(new Error("dropped"));
    },
  });
  return new Response(body, { status: response.status, headers });
}

async function world(work: (w: World) => Promise<void>): Promise<void> {
  const cache = await Deno.makeTempDir();
  const files = new Map<string, Uint8Array>();
  for (const path of tinyFiles) {
    files.set(path, await fixture(`tiny-sd/${path}`));
  }
  const faults = new Map<string, Fault>();
  const attempts = new Map<string, number>();
  const [hub, storage]: [Seen[], Seen[]] = [[], []];
  const note = (seen: Seen[], request: Request, path: string) => {
    seen.push({
      path,
      range: request.headers.get("Range"),
      token: request.headers.get("Authorization"),
    });
    const attempt = (attempts.get(path) ?? 0) + 1;
    attempts.set(path, attempt);
    return attempt;
  };
  const large = (path: string) => path.endsWith(".safetensors");
  const silent = { hostname: "127.0.0.1", port: 0, onListen: () => {} };
  const second = Deno.serve(
    { ...silent, onError: () => new Response() },
    (request) => {
      const path = decodeURIComponent(new URL(request.url).pathname.slice(1));
      const attempt = note(storage, request, path);
      const whole = files.get(path)!;
      return faults.get(path)?.(request, attempt, whole) ??
        part(request, whole);
    },
  );
  const origin = (server: Deno.HttpServer<Deno.NetAddr>) =>
    `http://127.0.0.1:${server.addr.port}`;
  const first = Deno.serve(
    { ...silent, onError: () => new Response() },
    async (request) => {
      const url = new URL(request.url);
      const path = decodeURIComponent(url.pathname.slice(1));
      const api = `api/models/${REPOSITORY}`;
      const resolve = `${REPOSITORY}/resolve/${COMMIT}/`;
      const file = path.startsWith(resolve) ? path.slice(resolve.length) : "";
      if (file && large(file) && files.has(file)) {
        hub.push({
          path: file,
          range: null,
          token: request.headers.get("Authorization"),
        });
        return Response.redirect(`${origin(second)}/${file}`, 302);
      }
      const name = file || path;
      const attempt = note(hub, request, name);
      const fault = faults.get(name)?.(
        request,
        attempt,
        files.get(file) ?? new Uint8Array(),
      );
      if (fault) return fault;
      if (path.startsWith(`${api}/revision/`)) {
        const revision = path.slice(`${api}/revision/`.length);
        if (!["main", "v1.0", COMMIT].includes(revision)) {
          return new Response("", {
            status: 404,
            headers: {
              "X-Error-Code": "RevisionNotFound",
              "X-Error-Message": "Invalid rev id",
            },
          });
        }
        return Response.json({ _id: "1", id: REPOSITORY, sha: COMMIT });
      }
      if (path === `${api}/tree/${COMMIT}`) {
        const all = await Promise.all([...files].map(async ([path, data]) => ({
          type: "file",
          path,
          size: large(path) ? 130 : data.length,
          oid: await gitHash(data),
          ...(large(path)
            ? {
              lfs: {
                oid: await sha256(data),
                size: data.length,
                pointerSize: 130,
              },
            }
            : {}),
        })));
        // In two pages, as long lists come.
        const [half, rest] = [all.slice(0, 7), all.slice(7)];
        if (url.searchParams.has("cursor")) return Response.json(rest);
        url.searchParams.set("cursor", "2");
        return Response.json([
          { type: "directory", path: "unet", size: 0 },
          ...half,
        ], {
          headers: { Link: `<${url}>; rel="next"` },
        });
      }
      const data = files.get(file);
      if (data) return part(request, data);
      return new Response("", {
        status: 401,
        headers: { "X-Error-Code": "RepoNotFound" },
      });
    },
  );
  const events: HubEvent[] = [];
  const waits: number[] = [];
  const env: Record<string, string> = {
    HF_ENDPOINT: `${origin(first)}/`,
    HF_HOME: cache,
  };
  try {
    await work({
      cache: joinPath(cache, "hub"),
      events,
      waits,
      hub,
      storage,
      files,
      faults,
      env,
      resolve: (spec = REPOSITORY, options = {}) =>
        resolveModel(spec, {
          env: (name) => env[name],
          sleep: (wait) => Promise.resolve(void waits.push(wait)),
          onEvent: (event) => events.push(event),
          idle: 5000,
          ...options,
        }),
    });
  } finally {
    await first.shutdown();
    await second.shutdown();
    await Deno.remove(cache, { recursive: true });
  }
}

function gitHash(data: Uint8Array): Promise<string> {
  const header = new TextEncoder().encode(`blob ${data.length}\0`);
  const all = new Uint8Array(header.length + data.length);
  all.set(header);
  all.set(data, header.length);
  return digest("SHA-1", all);
}

const folderOf = (w: World) =>
  joinPath(w.cache, "models--some-org--tiny-sd", "snapshots", COMMIT);

async function filesIn(folder: string, below = ""): Promise<string[]> {
  const found: string[] = [];
  for await (const entry of Deno.readDir(joinPath(folder, below))) {
    const path = below ? `${below}/${entry.name}` : entry.name;
    found.push(...(entry.isDirectory ? await filesIn(folder, path) : [path]));
  }
  return found.sort();
}

Deno.test("a model comes from the hub, only the files it needs", () =>
  world(async (w) => {
    for (
      const path of [
        "README.md",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "safety_checker/model.safetensors",
        "safety_checker/config.json",
        "tokenizer/tokenizer.json",
        "feature_extractor/preprocessor_config.json",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
      ]
    ) w.files.set(path, new TextEncoder().encode(path));
    const folder = await w.resolve();
    assertEquals(folder, folderOf(w));
    assertEquals(await filesIn(folder), tinyFiles);
    for (const path of tinyFiles) {
      assertEquals(
        await Deno.readFile(joinPath(folder, path)),
        await fixture(`tiny-sd/${path}`),
        path,
      );
    }
    const model = await loadModel(folder);
    disposeModel(model);
    const resolved = w.events.find((event) => event.type === "resolved")!;
    assertEquals(resolved.commit, COMMIT);
    assertEquals(resolved.files, tinyFiles.length);
    const total = tinyFiles.reduce(
      (n, path) => n + w.files.get(path)!.length,
      0,
    );
    assertEquals(resolved.bytes, total);
    // The second time nothing is asked for but the revision and the list.
    const before = w.hub.length + w.storage.length;
    assertEquals(await w.resolve(`${REPOSITORY}@v1.0`), folder);
    assertEquals(w.hub.length + w.storage.length - before, 3);
    assertEquals(w.waits, []);
  }));

Deno.test("the cache is laid out as Python's library and the client expect", () =>
  world(async (w) => {
    const folder = await w.resolve();
    await w.resolve(`${REPOSITORY}@v1.0`);
    const storage = joinPath(w.cache, "models--some-org--tiny-sd");
    assertEquals(await Deno.readTextFile(`${storage}/refs/main`), COMMIT);
    const target = await Deno.readLink(joinPath(folder, UNET));
    const name = await sha256(w.files.get(UNET)!);
    assertEquals(target, `../../../blobs/${name}`);
    const blobs = await filesIn(joinPath(storage, "blobs"));
    assertEquals(
      blobs.filter((name) => name.length !== 64 && name.length !== 40),
      [],
    );
    assert(blobs.includes(await gitHash(w.files.get("unet/config.json")!)));
    const scanned = await scanCachedRepo(storage);
    assertEquals(scanned.id, { name: REPOSITORY, type: "model" });
    assertEquals(scanned.revisions.length, 1);
    assertEquals(scanned.revisions[0].commitOid, COMMIT);
    assertEquals(scanned.revisions[0].refs.sort(), ["main", "v1.0"]);
  }));

Deno.test("the token goes to the hub and nowhere else", () =>
  world(async (w) => {
    await w.resolve(`${REPOSITORY}:${UNET}`);
    assert(w.hub.every(({ token }) => token === null));
    await Deno.writeTextFile(
      joinPath(w.env.HF_HOME, "token"),
      "hf_from_login\n",
    );
    await w.resolve(`${REPOSITORY}:model_index.json`);
    assertEquals(w.hub.at(-1)!.token, "Bearer hf_from_login");
    w.env.HF_TOKEN = "hf_secret";
    const before = w.hub.length;
    await w.resolve(`${REPOSITORY}:vae/diffusion_pytorch_model.safetensors`);
    for (const { token } of w.hub.slice(before)) {
      assertEquals(token, "Bearer hf_secret");
    }
    assert(w.storage.length >= 2);
    for (const { token } of w.storage) assertEquals(token, null);
  }));

for (const how of ["drop", "end"] as const) {
  Deno.test(`a connection that breaks (${how}) is resumed where it broke`, () =>
    world(async (w) => {
      w.faults.set(
        UNET,
        (request, attempt, whole) =>
          attempt <= 3 ? cut(part(request, whole), 1000, how) : undefined,
      );
      const path = await w.resolve(`${REPOSITORY}:${UNET}`);
      assertEquals(await Deno.readFile(path), w.files.get(UNET));
      assertEquals(
        w.storage.map(({ range }) => range),
        [null, "bytes=1000-", "bytes=2000-", "bytes=3000-"],
      );
      assertEquals(w.waits, [500, 1000, 2000]);
      const retries = w.events.filter((event) => event.type === "retry");
      assertEquals(retries.map((event) => event.failures), [1, 2, 3]);
    }));
}

Deno.test("a connection that always breaks ends in an error, and is kept", () =>
  world(async (w) => {
    w.faults.set(
      UNET,
      (request, _, whole) => cut(part(request, whole), 100, "end"),
    );
    await assertRejects(
      () => w.resolve(`${REPOSITORY}:${UNET}`, { retries: 2 }),
      Error,
      "300 bytes are kept",
    );
    assertEquals(w.storage.length, 3);
    // Another process goes on, and the checksum covers both parts.
    w.faults.clear();
    const path = await w.resolve(`${REPOSITORY}:${UNET}`);
    assertEquals(w.storage.at(-1)!.range, "bytes=300-");
    assertEquals(await Deno.readFile(path), w.files.get(UNET));
    const blobs = joinPath(w.cache, "models--some-org--tiny-sd", "blobs");
    assertEquals((await filesIn(blobs)).length, 1);
  }));

Deno.test("progress starts the count of failures again", () =>
  world(async (w) => {
    const big = new Uint8Array(4 << 20).map((_, i) => i % 251);
    w.files.set("big.safetensors", big);
    w.faults.set(
      "big.safetensors",
      (request, attempt, whole) =>
        attempt <= 3 ? cut(part(request, whole), 1 << 20, "end") : undefined,
    );
    const path = await w.resolve(`${REPOSITORY}:big.safetensors`, {
      retries: 1,
    });
    assertEquals(await Deno.readFile(path), big);
    const loaded = w.events.flatMap((event) =>
      event.type === "progress" ? [event.loaded] : []
    );
    assertEquals(loaded, loaded.toSorted((a, b) => a - b));
    assertEquals(loaded.at(-1), big.length);
  }));

Deno.test("wrong bytes are found by the checksum and fetched once more", () =>
  world(async (w) => {
    const bad = (request: Request, whole: Uint8Array) => {
      const data = whole.slice();
      data[data.length - 1] ^= 1;
      return part(request, data);
    };
    for (const path of [UNET, "unet/config.json"]) {
      w.faults.set(
        path,
        (request, attempt, whole) =>
          attempt === 1 ? bad(request, whole) : undefined,
      );
      const got = await w.resolve(`${REPOSITORY}:${path}`);
      assertEquals(await Deno.readFile(got), w.files.get(path));
    }
    const vae = "vae/diffusion_pytorch_model.safetensors";
    w.faults.set(vae, (request, _, whole) => bad(request, whole));
    await assertRejects(
      () => w.resolve(`${REPOSITORY}:${vae}`),
      Error,
      `expected bytes with checksum ${await sha256(w.files.get(vae)!)}`,
    );
    assertEquals(w.storage.filter(({ path }) => path === vae).length, 2);
    await assertRejects(() => Deno.stat(joinPath(folderOf(w), vae)));
  }));

Deno.test("a part left by another file is not built upon", () =>
  world(async (w) => {
    const blob = joinPath(
      w.cache,
      "models--some-org--tiny-sd/blobs",
      await sha256(w.files.get(UNET)!),
    );
    await Deno.mkdir(blob.slice(0, blob.lastIndexOf("/")), { recursive: true });
    await Deno.writeFile(`${blob}.incomplete`, new Uint8Array(500));
    const path = await w.resolve(`${REPOSITORY}:${UNET}`);
    assertEquals(await Deno.readFile(path), w.files.get(UNET));
    assertEquals(
      w.storage.map(({ range }) => range),
      ["bytes=500-", null],
    );
    const longer = new Uint8Array(w.files.get(UNET)!.length + 9);
    await Deno.remove(path);
    await Deno.rename(blob, `${blob}.old`);
    await Deno.writeFile(`${blob}.incomplete`, longer);
    await w.resolve(`${REPOSITORY}:${UNET}`);
    assertEquals(await Deno.readFile(path), w.files.get(UNET));
    assertEquals(w.storage.at(-1)!.range, null);
  }));

Deno.test("servers that ignore or refuse ranges are asked from the start", () =>
  world(async (w) => {
    const answers: Record<string, Fault> = {
      ignored: (_, __, whole) => new Response(whole.slice()),
      refused: (request) =>
        request.headers.has("Range")
          ? new Response(null, { status: 416 })
          : undefined,
      shifted: (request, _, whole) =>
        request.headers.has("Range")
          ? new Response(whole.slice(3), {
            status: 206,
            headers: {
              "Content-Range": `bytes 3-${whole.length - 1}/${whole.length}`,
            },
          })
          : undefined,
    };
    for (const [name, answer] of Object.entries(answers)) {
      const path = `${name}.safetensors`;
      w.files.set(path, new TextEncoder().encode(`${name} `.repeat(500)));
      w.faults.set(
        path,
        (request, attempt, whole) =>
          attempt === 1
            ? cut(part(request, whole), 100, "end")
            : answer(request, attempt, whole),
      );
      const got = await w.resolve(`${REPOSITORY}:${path}`);
      assertEquals(await Deno.readFile(got), w.files.get(path), name);
    }
  }));

Deno.test("more bytes than announced are not kept", () =>
  world(async (w) => {
    w.faults.set(UNET, (_, attempt, whole) => {
      const more = new Uint8Array(whole.length + 1);
      more.set(whole);
      return attempt === 1 ? new Response(more) : undefined;
    });
    const path = await w.resolve(`${REPOSITORY}:${UNET}`);
    assertEquals(await Deno.readFile(path), w.files.get(UNET));
  }));

Deno.test("a server that asks to wait is given its time, within bounds", () =>
  world(async (w) => {
    const busy = (after: string, status = 429) =>
      new Response("", { status, headers: { "Retry-After": after } });
    const revision = `api/models/${REPOSITORY}/revision/main`;
    w.faults.set(
      revision,
      (_, attempt) => attempt === 1 ? busy("7") : undefined,
    );
    w.faults.set(
      UNET,
      (_, attempt) =>
        attempt === 1
          ? busy(new Date(Date.now() + 20_000).toUTCString(), 503)
          : attempt === 2
          ? new Response("", { status: 502 })
          : undefined,
    );
    await w.resolve(`${REPOSITORY}:${UNET}`);
    assertEquals(w.waits.length, 3);
    assertEquals(w.waits[0], 7000);
    assert(w.waits[1] > 17_000 && w.waits[1] <= 20_000, `${w.waits[1]}`);
    assertEquals(w.waits[2], 1000);
    w.faults.set(revision, () => busy("3600"));
    await assertRejects(() => w.resolve(), Error, "the wish to wait 3600 s");
    assertEquals(w.waits.length, 3);
    w.faults.set(revision, () => busy("0"));
    await assertRejects(
      () => w.resolve(REPOSITORY, { retries: 4 }),
      Error,
      "status 429, 5 times",
    );
    assertEquals(w.waits.slice(3), [0, 0, 0, 0]);
  }));

Deno.test("refusals say what to do and are not repeated", () =>
  world(async (w) => {
    const asked = () => w.hub.length;
    const refused = async (spec: string, message: string) => {
      const before = asked();
      await assertRejects(() => w.resolve(spec), Error, message);
      return asked() - before;
    };
    assertEquals(await refused("some-org/other", "a token in HF_TOKEN"), 1);
    assertEquals(await refused(`${REPOSITORY}@v9`, "404 RevisionNotFound"), 1);
    w.faults.set(
      "model_index.json",
      () =>
        new Response("", {
          status: 403,
          headers: {
            "X-Error-Code": "GatedRepo",
            "X-Error-Message": "Access to this model is restricted",
          },
        }),
    );
    w.env.HF_TOKEN = "hf_x";
    await refused(REPOSITORY, "accept its terms");
    await refused(REPOSITORY, "403 GatedRepo: Access to this model");
    assertEquals(
      await refused(`${REPOSITORY}:nothing.safetensors`, "no such file"),
      3,
    );
    assertEquals(w.waits, []);
  }));

Deno.test("a hub that is not there is given up on", () =>
  world(async (w) => {
    const taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = taken.addr;
    taken.close();
    w.env.HF_ENDPOINT = `http://127.0.0.1:${port}`;
    await assertRejects(
      () => w.resolve(REPOSITORY, { retries: 3 }),
      Error,
      "HF_HUB_OFFLINE=1",
    );
    assertEquals(w.waits, [500, 1000, 2000]);
  }));

Deno.test("a connection that falls silent counts as broken", () =>
  world(async (w) => {
    w.faults.set(
      UNET,
      (_, attempt, whole) =>
        attempt > 1 ? undefined : new Response(
          new ReadableStream({
            start: (controller) => controller.enqueue(whole.slice(0, 10)),
          }),
        ),
    );
    const path = await w.resolve(`${REPOSITORY}:${UNET}`, { idle: 200 });
    assertEquals(await Deno.readFile(path), w.files.get(UNET));
    assertEquals(w.storage.map(({ range }) => range), [null, "bytes=10-"]);
  }));

Deno.test("a download can be ended and gone on with", () =>
  world(async (w) => {
    const stop = new AbortController();
    w.faults.set(UNET, (request, attempt, whole) =>
      attempt === 1 ? cut(part(request, whole), 700, "end") : undefined);
    await assertRejects(
      () =>
        w.resolve(`${REPOSITORY}:${UNET}`, {
          signal: stop.signal,
          sleep: () =>
            Promise.resolve(stop.abort()),
        }),
      DOMException,
    );
    await w.resolve(`${REPOSITORY}:${UNET}`);
    assertEquals(w.storage.at(-1)!.range, "bytes=700-");
  }));

Deno.test("offline, the cache is enough or an error", () =>
  world(async (w) => {
    w.env.HF_HUB_OFFLINE = "1";
    await assertRejects(() => w.resolve(), Error, "HF_HUB_OFFLINE is set");
    delete w.env.HF_HUB_OFFLINE;
    await w.resolve();
    const before = w.hub.length;
    w.env.HF_HUB_OFFLINE = "true";
    assertEquals(await w.resolve(), folderOf(w));
    assertEquals(await w.resolve(`${REPOSITORY}@${COMMIT}`), folderOf(w));
    await assertRejects(() => w.resolve(`${REPOSITORY}@v2`), Error, "v2");
    await Deno.remove(await Deno.realPath(joinPath(folderOf(w), UNET)));
    await assertRejects(() => w.resolve(), Error, "unet");
    assertEquals(w.hub.length, before);
  }));

Deno.test("the cache lies where the environment says", () =>
  world(async (w) => {
    const spec = `${REPOSITORY}:model_index.json`;
    const tail =
      `models--some-org--tiny-sd/snapshots/${COMMIT}/model_index.json`;
    const home = w.env.HF_HOME;
    assertEquals(await w.resolve(spec), `${home}/hub/${tail}`);
    w.env.HF_HUB_CACHE = `${home}/elsewhere`;
    assertEquals(await w.resolve(spec), `${home}/elsewhere/${tail}`);
    delete w.env.HF_HUB_CACHE;
    delete w.env.HF_HOME;
    w.env.HOME = `${home}/me`;
    assertEquals(
      await w.resolve(spec),
      `${home}/me/.cache/huggingface/hub/${tail}`,
    );
    w.env.XDG_CACHE_HOME = "~/cache";
    w.env.HF_HOME = "~/hf";
    assertEquals(await w.resolve(spec), `${home}/me/hf/hub/${tail}`);
  }));

Deno.test("variants, shards, tokenizers and other layouts are chosen well", () =>
  world(async (w) => {
    const chosen = async (options?: HubOptions) => {
      await Deno.remove(w.cache, { recursive: true }).catch(() => {});
      return await filesIn(await w.resolve(REPOSITORY, options));
    };
    const data = new TextEncoder().encode("x");
    const half = "unet/diffusion_pytorch_model.fp16.safetensors";
    w.files.set(half, data);
    assertEquals(
      await chosen({ variant: "fp16" }),
      tinyFiles.map((path) => path === UNET ? half : path).sort(),
    );
    assertEquals(
      await chosen({ only: "tokenizer" }),
      tinyFiles.filter((path) => path.startsWith("tokenizer/")),
    );
    const index = "unet/diffusion_pytorch_model.safetensors.index.json";
    const shards = [1, 2].map((i) =>
      `unet/diffusion_pytorch_model-0000${i}-of-00002.safetensors`
    );
    w.files.delete(UNET);
    for (const path of shards) {
      w.files.set(path, new TextEncoder().encode(path));
    }
    w.files.set(
      index,
      new TextEncoder().encode(JSON.stringify({
        weight_map: { a: shards[0].slice(5), b: shards[1].slice(5) },
      })),
    );
    assertEquals(
      await chosen(),
      [...tinyFiles.filter((path) => path !== UNET), index, ...shards].sort(),
    );
    w.files.delete(shards[1]);
    await assertRejects(() => chosen(), Error, shards[1]);
    w.files.delete(index);
    w.files.delete(half);
    w.files.delete(shards[0]);
    w.files.set("unet/diffusion_pytorch_model.bin", data);
    await assertRejects(() => chosen(), Error, "pickle files can run any code");
    // CLIP, and a repository of single files.
    w.files.delete("model_index.json");
    await assertRejects(
      () => chosen(),
      Error,
      "model_index.json or config.json",
    );
    w.files.set("cat.safetensors", data);
    await assertRejects(() => chosen(), Error, "single files: cat.safetensors");
    const clip = ["config.json", "model.safetensors", "tokenizer.json"];
    for (const path of clip) w.files.set(path, data);
    w.files.set("pytorch_model.bin", data);
    assertEquals(await chosen(), clip);
  }));

Deno.test("a hub that lists files outside the repository is not believed", () =>
  world(async (w) => {
    const tree = `api/models/${REPOSITORY}/tree/${COMMIT}`;
    const oid = "a".repeat(40);
    for (
      const path of [
        "../../evil",
        "/etc/passwd",
        "a/../../b",
        "a\\b",
        "",
        "c:x",
      ]
    ) {
      w.faults.set(
        tree,
        () => Response.json([{ type: "file", path, size: 1, oid }]),
      );
      await assertRejects(() => w.resolve(), Error, "inside the repository");
    }
    w.faults.set(
      tree,
      () =>
        Response.json([{
          type: "file",
          path: "a",
          size: 1,
          oid: "../../evil",
        }]),
    );
    await assertRejects(() => w.resolve(), Error, "a list of files");
    const revision = `api/models/${REPOSITORY}/revision/main`;
    w.faults.set(revision, () => Response.json({ sha: "../../evil" }));
    await assertRejects(() => w.resolve(), Error, "expected a commit");
    w.faults.set(revision, () => new Response("<html>"));
    await assertRejects(() => w.resolve(), Error, "an answer of the hub");
  }));

Deno.test("a local path is taken as it is, before the hub is asked", async () => {
  const folder = await Deno.makeTempDir();
  assertEquals(await resolveModel(folder), folder);
  await Deno.remove(folder);
  for (const spec of [folder, "./model", "model", "a/b/c", "C:\\model", ""]) {
    await assertRejects(() => resolveModel(spec), Error, "org/name[@revision]");
  }
});

Deno.test("names on the hub are parsed", () => {
  const cases: [string, ReturnType<typeof parseHubSpec>][] = [
    ["org/name", { repository: "org/name", revision: "main" }],
    ["org/name@v1.0", { repository: "org/name", revision: "v1.0" }],
    ["org/name@refs/pr/1", { repository: "org/name", revision: "refs/pr/1" }],
    ["o/n@r:a/b.safetensors", {
      repository: "o/n",
      revision: "r",
      file: "a/b.safetensors",
    }],
    ["o/n:x", { repository: "o/n", revision: "main", file: "x" }],
    ["name", undefined],
    ["../name", undefined],
    ["org/../x", undefined],
    ["org/na--me", undefined],
    ["org/name@../../x", undefined],
    ["org/name@a//b", undefined],
    ["org/name:../x", undefined],
    ["org/name:/x", undefined],
    ["org/name@", undefined],
    ["https://huggingface.co/org/name", undefined],
  ];
  for (const [spec, expected] of cases) {
    assertEquals(parseHubSpec(spec), expected, spec);
  }
});
