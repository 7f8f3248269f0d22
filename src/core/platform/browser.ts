/**
 * The machine in a browser: no files, no environment.
 *
 * @module
 */
import type { Files, Machine } from "./machine_type.ts";
import { web } from "./web.ts";

const none = (path?: string | URL): Promise<never> =>
  Promise.reject(
    new Error(
      `there are no files in a browser (${path}): pass an http(s): URL, a ` +
        "Blob or bytes",
    ),
  );

const files: Files = {
  read: none,
  stat: none,
  linkStat: none,
  list: none,
  makeFolder: none,
  open: none,
  rename: none,
  remove: none,
  copy: none,
  link: none,
  readLink: none,
  realPath: none,
  lock: none,
};

/** As JSON, with what JSON has no word for; a class by its name. */
function inspect(value: unknown): string {
  if (typeof value === "function") return `[Function: ${value.name}]`;
  if (value === null || typeof value !== "object") {
    return typeof value === "bigint" ? `${value}n` : String(value);
  }
  if (value instanceof Error) return String(value);
  try {
    return JSON.stringify(
      value,
      (_, v) =>
        typeof v === "number" && !Number.isFinite(v) || typeof v === "bigint"
          ? String(v)
          : v,
    );
  } catch {
    return Object.prototype.toString.call(value);
  }
}

/** Name of the cache of models and adapters. */
const CACHE = "mix-of-show";

/** Whether two answers are about the same content, as far as they say. */
function same(a: Response, b: Response): boolean {
  return ["ETag", "Last-Modified", "Content-Length"].every((name) =>
    a.headers.get(name) === b.headers.get(name)
  );
}

/** Fetches a file into the browser's cache, unless the server has no newer. */
async function kept(url: string): Promise<Blob | undefined> {
  // Only where the page came from a place that can be trusted.
  if (!("caches" in globalThis)) return undefined;
  const cache = await caches.open(CACHE);
  const there = await cache.match(url);
  if (there) {
    const now = await fetch(url, { method: "HEAD" }).catch(() => undefined);
    if (!now?.ok || same(now, there)) return await there.blob();
  }
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status}`);
  const blob = await answer.blob();
  const { headers } = answer;
  // A full disk is no reason not to go on.
  await cache.put(url, new Response(blob, { headers })).catch(() => {});
  return blob;
}

/** A page, or a worker of one. */
export function browserMachine(): Machine {
  return {
    ...web,
    name: "browser",
    // navigator.deviceMemory stops at 8 GB: no limit to count with.
    memory: () => undefined,
    env: () => undefined,
    inspect,
    hash: () => {
      throw new Error("Cannot compute a checksum: browsers do it whole only");
    },
    processName: () => crypto.randomUUID(),
    // Nobody but a bundler knows, and it puts them beside the bundle.
    packageFile: () => undefined,
    wasmFolder: () => new URL("./", import.meta.url).href,
    kept,
    files,
  };
}
