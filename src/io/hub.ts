/**
 * Models from the Hugging Face hub, in the cache that the Python library uses:
 * what one of the two has downloaded, the other finds.
 *
 * Revisions and file lists come through `@huggingface/hub`. Its downloads are
 * whole or not at all, so those are done here: in pieces that survive dropped
 * connections and new processes, and checked against the hub's checksums.
 *
 * Cache layout: `models--org--name/{refs,blobs,snapshots}` as described in
 * https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
 *
 * @module
 */
import * as z from "zod";
import { cannot, reasonOf } from "../core/errors.ts";
import type { Hash, OpenFile } from "../core/platform/machine_type.ts";
import { machine } from "../core/platform/machine.ts";
import {
  exists,
  joinPath,
  parentOf,
  readJson,
  readText,
  writeAtomic,
} from "./files.ts";
import { chooseWeights } from "./folder.ts";

/** The repository whose tokenizer Stable Diffusion 1.x uses. */
export const CLIP_REPOSITORY = "openai/clip-vit-large-patch14";

/** What happens during a download. */
export type HubEvent =
  | {
    /** The files are chosen; small ones that list others are already here. */
    readonly type: "resolved";
    readonly repository: string;
    readonly commit: string;
    readonly files: number;
    /** Sizes of all chosen files together, in bytes. */
    readonly bytes: number;
  }
  | {
    /** Some of a file has arrived (at most one event a MiB), or all of it. */
    readonly type: "progress";
    readonly path: string;
    /** Bytes on the disk, those of earlier runs included. */
    readonly loaded: number;
    readonly size: number;
    /** Nothing had to be downloaded. */
    readonly cached: boolean;
  }
  | {
    /** Something failed and is tried again. */
    readonly type: "retry";
    /** The file, or the address asked. */
    readonly path: string;
    /** Failures so far without progress. */
    readonly failures: number;
    /** Milliseconds until the next attempt. */
    readonly wait: number;
    readonly reason: string;
  };

/** Settings of {@linkcode resolveModel}. */
export interface HubOptions {
  /** The weights to prefer where there are several (`"fp16"`). */
  readonly variant?: string;
  /**
   * What is needed of the repository: all of the model, or only its tokenizer.
   *
   * @default "model"
   */
  readonly only?: "model" | "tokenizer";
  /** Told about progress and retries. */
  readonly onEvent?: (event: HubEvent) => void;
  /** Ends the download; what has arrived is kept for the next time. */
  readonly signal?: AbortSignal;
  /**
   * Failures in a row without progress before giving up.
   *
   * @default 5
   */
  readonly retries?: number;
  /**
   * Milliseconds without a byte after which a connection counts as dead.
   *
   * @default 30000
   */
  readonly idle?: number;
  /**
   * The longest wait the server may ask for, in milliseconds.
   *
   * @default 300000
   */
  readonly maxWait?: number;
  /**
   * Reads an environment variable (HF_HOME, HF_HUB_CACHE, HF_TOKEN,
   * HF_HUB_OFFLINE, HF_ENDPOINT).
   *
   * @default the environment
   */
  readonly env?: (name: string) => string | undefined;
  /**
   * Waits so many milliseconds.
   *
   * @default setTimeout
   */
  readonly sleep?: (milliseconds: number) => Promise<void>;
}

/** A repository on the hub, as the user names it. */
export interface HubSpec {
  /** `org/name`. */
  readonly repository: string;
  /** Branch, tag or commit. */
  readonly revision: string;
  /** One file of it, if only that is wanted. */
  readonly file?: string;
}

const COMMIT = /^[0-9a-f]{40}$/;
const NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,95}";
const SPEC = new RegExp(
  `^(${NAME}/${NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{0,127}))?(?::(.+))?$`,
);

/**
 * Parses `org/name[@revision][:file]`.
 *
 * @param spec The text.
 * @returns Its parts, or undefined if it names nothing on the hub.
 */
export function parseHubSpec(spec: string): HubSpec | undefined {
  const match = spec.match(SPEC);
  if (!match) return undefined;
  const [, repository, revision = "main", file] = match;
  const safe =
    ![repository, revision].some((s) => /\.\.|--|\/\/|\/$/.test(s)) &&
    (file === undefined || isSafePath(file));
  return safe
    ? { repository, revision, ...(file === undefined ? {} : { file }) }
    : undefined;
}

/** Whether a path from the hub stays inside the folder it is joined to. */
function isSafePath(path: string): boolean {
  return path !== "" && !/[\\\0:]/.test(path) &&
    path.split("/").every((part) =>
      part !== "" && part !== "." && part !== ".."
    );
}

/** Everything about this machine and this download. */
interface Setting {
  readonly endpoint: string;
  readonly cache: string;
  readonly token?: string;
  readonly offline: boolean;
  readonly options: HubOptions;
  readonly retries: number;
  readonly idle: number;
  readonly maxWait: number;
  readonly sleep: (milliseconds: number) => Promise<void>;
  readonly emit: (event: HubEvent) => void;
}

async function settingOf(options: HubOptions): Promise<Setting> {
  const env = options.env ?? machine.env;
  const value = (name: string) => env(name)?.trim() || undefined;
  const home = value("HOME") ?? value("USERPROFILE") ?? ".";
  const expand = (path: string) => path.replace(/^~(?=\/|$)/, home);
  const base = expand(
    value("HF_HOME") ??
      joinPath(
        value("XDG_CACHE_HOME") ?? joinPath(home, ".cache"),
        "huggingface",
      ),
  );
  // `huggingface-cli login` leaves the token in a file.
  const tokenFile = expand(value("HF_TOKEN_PATH") ?? joinPath(base, "token"));
  const token = value("HF_TOKEN") ??
    (await exists(tokenFile) ? (await readText(tokenFile)).trim() : undefined);
  return {
    endpoint: (value("HF_ENDPOINT") ?? "https://huggingface.co")
      .replace(/\/+$/, ""),
    cache: expand(value("HF_HUB_CACHE") ?? joinPath(base, "hub")),
    ...(token ? { token } : {}),
    offline: /^(1|true|yes|on)$/i.test(value("HF_HUB_OFFLINE") ?? ""),
    options,
    retries: options.retries ?? 5,
    idle: options.idle ?? 30_000,
    maxWait: options.maxWait ?? 300_000,
    sleep: options.sleep ??
      ((ms) => new Promise((resolve) => setTimeout(resolve, ms))),
    emit: options.onEvent ?? (() => {}),
  };
}

/**
 * Finds a model: a local path, or `org/name[@revision]` of the hub, which is
 * downloaded into the cache unless it is there. `org/name:file` finds one file
 * of the repository.
 *
 * Of a diffusers repository only the configs, the tokenizer and one set of
 * `.safetensors` weights of each network are downloaded.
 *
 * @param spec Local path or name on the hub.
 * @param options Variant, progress, patience.
 * @returns A local folder (with `:file`, a local file).
 * @throws If there is neither a local path nor such a repository, a file is
 * missing, only pickle weights are there, access is refused, or the server
 * fails or sends wrong bytes more often than `retries` allows.
 *
 * @example
 * ```ts ignore
 * const folder = await resolveModel("org/model@main", { variant: "fp16" });
 * const model = await loadModel(folder);
 * ```
 */
export async function resolveModel(
  spec: string,
  options: HubOptions = {},
): Promise<string> {
  if (await exists(spec)) return spec;
  const parsed = parseHubSpec(spec);
  if (!parsed) {
    throw cannot(
      `find the model ${JSON.stringify(spec)}`,
      "an existing path, or org/name[@revision] of the Hugging Face hub",
      "neither",
    );
  }
  const setting = await settingOf(options);
  const { repository, revision, file } = parsed;
  const what = `get ${spec} (there is no such local path)`;
  const storage = joinPath(
    setting.cache,
    `models--${repository.replace("/", "--")}`,
  );
  const source = setting.offline
    ? await cachedSource(storage, revision, what)
    : await hubSource(setting, storage, repository, revision, what);
  const chosen = file !== undefined
    ? [need(source.paths, file, what)]
    : await chooseFiles(source, options, what);
  setting.emit({
    type: "resolved",
    repository,
    commit: source.commit,
    files: chosen.length,
    bytes: chosen.reduce((sum, path) => sum + source.size(path), 0),
  });
  for (const path of chosen) await source.fetch(path);
  const folder = joinPath(storage, "snapshots", source.commit);
  return file === undefined ? folder : joinPath(folder, file);
}

// ------------------------------------------------------------ which files

/** A revision of a repository: its files, each got on demand. */
interface Source {
  readonly commit: string;
  readonly paths: readonly string[];
  readonly size: (path: string) => number;
  /** Makes sure that the file is on the disk; gives its path there. */
  readonly fetch: (path: string) => Promise<string>;
}

const NETWORKS = ["text_encoder", "unet", "vae"];
const TOKENIZER_EXTRA = [
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
];
/** Files of a repository that name others. */
const shardIndex = z.object({ weight_map: z.record(z.string(), z.string()) });
const modelIndex = z.record(z.string(), z.unknown());

function need(paths: readonly string[], path: string, what: string): string {
  if (!paths.includes(path)) throw cannot(what, path, "no such file in it");
  return path;
}

/** The files that loading a model reads, and no others. */
async function chooseFiles(
  source: Source,
  options: HubOptions,
  what: string,
): Promise<string[]> {
  const { paths } = source;
  const inside = (folder: string) =>
    paths.filter((path) => parentOf(path) === (folder || ".")).map((path) =>
      path.slice(folder === "" ? 0 : folder.length + 1)
    );
  const join = (folder: string, name: string) => joinPath(folder, name);
  const tokenizer = (folder: string): string[] => {
    const names = inside(folder);
    const slow = ["vocab.json", "merges.txt"];
    const main = slow.every((name) => names.includes(name))
      ? slow
      : names.includes("tokenizer.json")
      ? ["tokenizer.json"]
      : [];
    if (main.length === 0) {
      throw cannot(
        what,
        `vocab.json and merges.txt, or tokenizer.json, in ${folder || "it"}`,
        names.join(", ") || "nothing",
      );
    }
    return [...main, ...TOKENIZER_EXTRA.filter((name) => names.includes(name))]
      .map((name) => join(folder, name));
  };
  const weights = async (folder: string): Promise<string[]> => {
    const name = chooseWeights(
      inside(folder),
      options.variant,
      `${what}: ${folder || "weights"}`,
    );
    const path = join(folder, name);
    if (!name.endsWith(".json")) return [path];
    const { weight_map: map } = await readJson(
      await source.fetch(path),
      shardIndex,
    );
    const shards = [...new Set(Object.values(map))].sort();
    return [
      path,
      ...shards.map((shard) => need(paths, join(folder, shard), what)),
    ];
  };
  if (options.only === "tokenizer") {
    return tokenizer(inside("tokenizer").length > 0 ? "tokenizer" : "");
  }
  if (paths.includes("model_index.json")) {
    const index = await readJson(
      await source.fetch("model_index.json"),
      modelIndex,
    );
    const has = (part: string) =>
      Array.isArray(index[part]) && typeof index[part][1] === "string";
    const files = ["model_index.json"];
    // Mix-of-Show's learned tokens.
    if (paths.includes("new_concept_cfg.json")) {
      files.push("new_concept_cfg.json");
    }
    if (has("scheduler")) {
      files.push(need(paths, "scheduler/scheduler_config.json", what));
    }
    if (has("tokenizer")) files.push(...tokenizer("tokenizer"));
    for (const part of NETWORKS.filter(has)) {
      files.push(need(paths, `${part}/config.json`, what));
      files.push(...await weights(part));
    }
    return files;
  }
  if (paths.includes("config.json")) {
    const names = inside("");
    const text = names.includes("vocab.json") ||
      names.includes("tokenizer.json");
    return [
      "config.json",
      ...(names.includes("preprocessor_config.json")
        ? ["preprocessor_config.json"]
        : []),
      ...(text ? tokenizer("") : []),
      ...await weights(""),
    ];
  }
  const single = paths.filter((path) => path.endsWith(".safetensors"));
  throw cannot(
    what,
    "model_index.json or config.json in it" +
      (single.length > 0 ? ", or a file named behind a colon" : ""),
    single.length > 0
      ? `single files: ${single.slice(0, 8).join(", ")}`
      : "none",
  );
}

// ------------------------------------------------------------ the cache

/** A revision as the cache has it, without asking anyone. */
async function cachedSource(
  storage: string,
  revision: string,
  what: string,
): Promise<Source> {
  const ref = joinPath(storage, "refs", revision);
  const commit = COMMIT.test(revision)
    ? revision
    : await exists(ref)
    ? (await readText(ref)).trim()
    : undefined;
  const folder = joinPath(storage, "snapshots", commit ?? "none");
  if (commit === undefined || !await exists(folder)) {
    throw cannot(
      what,
      `the revision ${revision} in ${storage} (HF_HUB_OFFLINE is set)`,
      "nothing cached",
    );
  }
  const sizes = new Map<string, number>();
  const walk = async (below: string) => {
    for (const entry of await machine.files.list(joinPath(folder, below))) {
      const path = below === "" ? entry.name : `${below}/${entry.name}`;
      if (entry.kind === "folder") await walk(path);
      // A link whose blob is gone is no file.
      else {
        const found = await machine.files.stat(joinPath(folder, path));
        if (found) sizes.set(path, found.size);
      }
    }
  };
  await walk("");
  return {
    commit,
    paths: [...sizes.keys()].sort(),
    size: (path) => sizes.get(path) ?? 0,
    fetch: (path) => Promise.resolve(joinPath(folder, path)),
  };
}

/** Makes a name in the snapshot that points to a blob, as Python's library. */
async function link(
  storage: string,
  commit: string,
  path: string,
  blob: string,
): Promise<string> {
  const pointer = joinPath(storage, "snapshots", commit, path);
  await machine.files.makeFolder(parentOf(pointer));
  const up = "../".repeat(path.split("/").length + 1);
  const target = `${up}blobs/${blob}`;
  for (let attempt = 0;; attempt++) {
    // Windows without the right to make links throws.
    const made = await machine.files.link(target, pointer)
      .catch(() => undefined);
    if (made) return pointer;
    if (made === false && attempt === 0) {
      // Broken, or of another content: a commit's files never change.
      await machine.files.remove(pointer);
      continue;
    }
    await machine.files.copy(joinPath(storage, "blobs", blob), pointer);
    return pointer;
  }
}

// ------------------------------------------------------------ the network

const RETRIED = new Set([408, 425, 429, 500, 502, 503, 504]);

/** Milliseconds a server asks to wait, from seconds or a date. */
function retryAfter(response: Response): number | undefined {
  const text = response.headers.get("Retry-After")?.trim();
  if (!text) return undefined;
  const seconds = Number(text);
  const wait = Number.isFinite(seconds)
    ? seconds * 1000
    : Date.parse(text) - Date.now();
  return Number.isFinite(wait) ? Math.max(0, wait) : undefined;
}

/** Half a second, doubled with every failure, at most half a minute. */
function backoff(failures: number): number {
  return Math.min(500 * 2 ** (failures - 1), 30_000);
}

/** An error that trying again does not mend. */
class Final extends Error {}

function final(what: string, expected: string, got: unknown): Final {
  return new Final(cannot(what, expected, got).message);
}

/** Asks once; dead connections end, refusals become errors that say what to do. */
async function ask(
  setting: Setting,
  what: string,
  input: string,
  init: RequestInit,
): Promise<Response> {
  const { endpoint, token, options, idle } = setting;
  const headers = new Headers(init.headers);
  headers.set("User-Agent", "mix-of-show");
  // The token is for the hub alone, not for mirrors it may point to.
  const own = new URL(input).origin === new URL(endpoint).origin;
  if (token && own) headers.set("Authorization", `Bearer ${token}`);
  const timeout = new AbortController();
  const timer = setTimeout(
    () => timeout.abort(new Error(`no answer for ${idle} ms`)),
    idle,
  );
  const signals = [timeout.signal, options.signal].filter((s) => !!s);
  let response: Response;
  try {
    response = await fetch(input, {
      ...init,
      headers,
      signal: AbortSignal.any(signals),
    });
  } catch (error) {
    options.signal?.throwIfAborted();
    throw error;
  } finally {
    clearTimeout(timer);
  }
  const { status } = response;
  if (response.ok || RETRIED.has(status) || status === 416) return response;
  await response.body?.cancel();
  const code = response.headers.get("X-Error-Code");
  const said = response.headers.get("X-Error-Message");
  const got = `${status}${code ? ` ${code}` : ""}${said ? `: ${said}` : ""}`;
  if (status === 401 || status === 403) {
    throw final(
      what,
      token
        ? "a repository that your token may read (accept its terms on the " +
          "hub; check the name)"
        : "a public repository, or a token in HF_TOKEN (check the name; " +
          "accept its terms on the hub)",
      got,
    );
  }
  if (status === 404) {
    throw final(what, "a repository, revision and file that exist", got);
  }
  throw final(what, `an answer from ${new URL(input).origin}`, got);
}

/** Asks until there is an answer, or often enough. */
async function patientFetch(
  setting: Setting,
  what: string,
  input: string,
  init: RequestInit,
): Promise<Response> {
  const { retries, maxWait, sleep, emit, options } = setting;
  for (let failures = 1;; failures++) {
    let reason: string;
    let wait = backoff(failures);
    try {
      const response = await ask(setting, what, input, init);
      if (!RETRIED.has(response.status)) return response;
      await response.body?.cancel();
      reason = `status ${response.status}`;
      wait = retryAfter(response) ?? wait;
    } catch (error) {
      if (error instanceof Final || options.signal?.aborted) throw error;
      reason = reasonOf(error);
    }
    const tooLong = wait > maxWait;
    if (failures > retries || tooLong) {
      throw final(
        what,
        `an answer from ${new URL(input).origin} (HF_HUB_OFFLINE=1 uses what ` +
          "is cached)",
        tooLong
          ? `${reason} and the wish to wait ${Math.ceil(wait / 1000)} s`
          : `${reason}, ${failures} times`,
      );
    }
    emit({ type: "retry", path: input, failures, wait, reason });
    await sleep(wait);
    options.signal?.throwIfAborted();
  }
}

/** One file of a revision, as the hub lists it. */
interface Remote {
  readonly path: string;
  readonly size: number;
  /** Name of its blob: SHA-256 of large files, git's SHA-1 of small ones. */
  readonly blob: string;
}

const treeEntry = z.object({
  path: z.string().refine(isSafePath, "a path inside the repository"),
  size: z.number().int().nonnegative(),
  oid: z.string().regex(COMMIT),
  lfs: z.object({
    oid: z.string().regex(/^[0-9a-f]{64}$/),
    size: z.number().int().nonnegative(),
  }).optional(),
});

/** A revision as the hub has it; asks for its commit and its files. */
async function hubSource(
  setting: Setting,
  storage: string,
  repository: string,
  revision: string,
  what: string,
): Promise<Source> {
  // Loaded when it is needed: most runs never ask the hub.
  const { listFiles, modelInfo } = await import("@huggingface/hub");
  const common = {
    hubUrl: setting.endpoint,
    fetch: (input: RequestInfo | URL, init: RequestInit = {}) =>
      patientFetch(setting, what, String(input), init),
  };
  const { sha } = await modelInfo({
    ...common,
    name: repository,
    revision,
    additionalFields: ["sha"],
  }).catch(explain(what));
  if (!COMMIT.test(sha ?? "")) throw cannot(what, "a commit", String(sha));
  const files = new Map<string, Remote>();
  const list = listFiles({
    ...common,
    repo: { type: "model", name: repository },
    recursive: true,
    revision: sha,
  });
  try {
    for await (const entry of list) {
      if (entry.type !== "file") continue;
      const { path, size, oid, lfs } = treeEntry.parse(entry);
      files.set(path, { path, size: lfs?.size ?? size, blob: lfs?.oid ?? oid });
    }
  } catch (error) {
    explain(what)(error);
  }
  if (revision !== sha) {
    await writeAtomic(joinPath(storage, "refs", revision), sha);
  }
  const url = (path: string) =>
    `${setting.endpoint}/${repository}/resolve/${sha}/${
      path.split("/").map(encodeURIComponent).join("/")
    }`;
  const done = new Map<string, Promise<string>>();
  return {
    commit: sha,
    paths: [...files.keys()].sort(),
    size: (path) => files.get(path)?.size ?? 0,
    fetch(path) {
      const before = done.get(path);
      if (before) return before;
      const file = files.get(path)!;
      const one = fetchFile(setting, storage, sha, file, url(path), what);
      done.set(path, one);
      return one;
    },
  };
}

/** Turns errors of the client and of the schema into ours. */
function explain(what: string): (error: unknown) => never {
  return (error) => {
    if (error instanceof Final) throw new Error(error.message);
    if (error instanceof z.ZodError) {
      const { path, message } = error.issues[0];
      throw cannot(what, "a list of files", `${path.join(".")}: ${message}`);
    }
    if (error instanceof DOMException) throw error;
    throw cannot(what, "an answer of the hub", reasonOf(error));
  };
}

/** Gets one file into the cache, unless it is there. */
async function fetchFile(
  setting: Setting,
  storage: string,
  commit: string,
  file: Remote,
  url: string,
  what: string,
): Promise<string> {
  const blob = joinPath(storage, "blobs", file.blob);
  const pointer = joinPath(storage, "snapshots", commit, file.path);
  const has = async (path: string) =>
    (await machine.files.stat(path))?.size === file.size;
  const report = (loaded: number, cached: boolean) =>
    setting.emit({
      type: "progress",
      path: file.path,
      loaded,
      size: file.size,
      cached,
    });
  if (await has(pointer)) {
    report(file.size, true);
    return pointer;
  }
  await machine.files.makeFolder(parentOf(blob));
  // As Python's library: two processes never write the same blob.
  const locks = joinPath(
    setting.cache,
    ".locks",
    storage.slice(storage.lastIndexOf("/") + 1),
  );
  await machine.files.makeFolder(locks);
  const unlock = await machine.files.lock(
    joinPath(locks, `${file.blob}.lock`),
  );
  try {
    const cached = await has(blob);
    if (!cached) {
      const bodyWhat = `${what}: ${file.path}`;
      try {
        await download(setting, blob, file, url, bodyWhat, report);
      } catch (error) {
        if (error instanceof Final) throw new Error(error.message);
        throw error;
      }
    }
    report(file.size, cached);
    return await link(storage, commit, file.path, file.blob);
  } finally {
    unlock();
  }
}

/** How much has to arrive between failures for them not to add up. */
const PROGRESS = 1 << 20;

/** Downloads into `blob`, going on where an earlier attempt was cut off. */
async function download(
  setting: Setting,
  blob: string,
  file: Remote,
  url: string,
  what: string,
  report: (loaded: number, cached: boolean) => void,
): Promise<void> {
  const path = `${blob}.incomplete`;
  const part = await machine.files.open(path, "update");
  try {
    await downloadInto(part, setting, file, url, what, report);
    await part.sync();
  } finally {
    part.close();
  }
  await machine.files.rename(path, blob);
}

async function downloadInto(
  part: OpenFile,
  setting: Setting,
  file: Remote,
  url: string,
  what: string,
  report: (loaded: number, cached: boolean) => void,
): Promise<void> {
  const { retries, sleep, emit, maxWait, options } = setting;
  let { size: have } = await part.stat();
  let hash = have > 0 && have <= file.size ? hashOf(part, file) : newHash(file);
  const restart = async () => {
    await part.truncate(0);
    have = 0;
    hash = newHash(file);
  };
  if (have > file.size) await restart();
  let failures = 0;
  let corrupt = 0;
  while (true) {
    const before = have;
    let reason: string | undefined;
    let asked: number | undefined;
    try {
      if (have < file.size) {
        const response = await ask(setting, what, url, {
          // Identity, or ranges would be those of compressed bytes.
          headers: {
            "Accept-Encoding": "identity",
            ...(have > 0 ? { Range: `bytes=${have}-` } : {}),
          },
        });
        if (RETRIED.has(response.status)) {
          asked = retryAfter(response);
          await response.body?.cancel();
          throw new Error(`status ${response.status}`);
        }
        if (response.status === 416 || !continues(response, have, file.size)) {
          // The server starts over or has another file: so do we.
          if (response.status !== 200) await response.body?.cancel();
          await restart();
          if (response.status !== 200) {
            throw new Error(`status ${response.status} for the rest of it`);
          }
        }
        let told = have;
        for await (const chunk of bodyOf(setting, response)) {
          if (have + chunk.length > file.size) {
            await restart();
            throw new Error(`more than ${file.size} bytes`);
          }
          await part.writeAt(have, chunk);
          hash.update(chunk);
          have += chunk.length;
          if (have - told >= PROGRESS) report(told = have, false);
        }
        if (have < file.size) {
          throw new Error(`the connection ended at ${have} of ${file.size}`);
        }
      }
      const digest = hash.digest("hex");
      if (digest === file.blob) return;
      await restart();
      if (++corrupt > 1) {
        throw final(what, `bytes with checksum ${file.blob}`, digest);
      }
      reason = `checksum ${digest} instead of ${file.blob}`;
    } catch (error) {
      if (error instanceof Final || options.signal?.aborted) throw error;
      reason = reasonOf(error);
    }
    failures = have - before >= PROGRESS ? 1 : failures + 1;
    const wait = asked ?? backoff(failures);
    if (failures > retries || wait > maxWait) {
      throw final(
        what,
        `${file.size} bytes`,
        `${reason}; ${have} bytes are kept for the next time`,
      );
    }
    emit({ type: "retry", path: file.path, failures, wait, reason });
    await sleep(wait);
    options.signal?.throwIfAborted();
  }
}

/** Whether a response goes on at a position, or is whole and that is 0. */
function continues(response: Response, have: number, size: number): boolean {
  if (response.status === 200) return have === 0;
  const range = response.headers.get("Content-Range");
  return response.status === 206 &&
    range === `bytes ${have}-${size - 1}/${size}`;
}

/** The chunks of a body; a silent connection is an error. */
async function* bodyOf(
  { idle, options }: Setting,
  response: Response,
): AsyncGenerator<Uint8Array> {
  if (!response.body) return;
  const reader = response.body.getReader();
  let finished = false;
  try {
    while (true) {
      let timer: ReturnType<typeof setTimeout> | undefined;
      const silence = new Promise<never>((_, reject) => {
        timer = setTimeout(
          () => reject(new Error(`no bytes for ${idle} ms`)),
          idle,
        );
      });
      const { done, value } = await Promise.race([reader.read(), silence])
        .finally(() => clearTimeout(timer));
      options.signal?.throwIfAborted();
      if (done) {
        finished = true;
        return;
      }
      yield value;
    }
  } finally {
    if (!finished) await reader.cancel().catch(() => {});
  }
}

/** SHA-256 of the file, or git's hash of a blob: SHA-1 of a header and it. */
function newHash({ blob, size }: Remote): Hash {
  return blob.length === 64
    ? machine.hash("sha256")
    : machine.hash("sha1").update(`blob ${size}\0`);
}

function hashOf(part: OpenFile, file: Remote): Hash {
  const hash = newHash(file);
  const buffer = new Uint8Array(1 << 20);
  for (let at = 0;;) {
    const count = part.readAt(at, buffer);
    if (count === 0) return hash;
    hash.update(buffer.subarray(0, count));
    at += count;
  }
}
