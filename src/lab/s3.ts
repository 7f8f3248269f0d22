/**
 * A store in an S3-compatible bucket. Requests are signed by aws4fetch, which
 * has no dependencies; the store needs GET, HEAD and PUT only.
 *
 * @module
 */
import { AwsClient } from "aws4fetch";
import { cannot, reasonOf } from "../core/errors.ts";
import { sha256 } from "../core/hash.ts";
import { machine } from "../core/platform/machine.ts";
import {
  exists,
  joinPath,
  parseJson,
  readBytes,
  writeAtomic,
} from "../io/files.ts";
import {
  identityIn,
  type S3Settings,
  type SharedStore,
  STORE_FILE,
  storeText,
} from "./shared_store.ts";

/** Concurrent requests of one store. */
const AT_ONCE = 8;

/** Milliseconds until the second attempt; each later one waits twice as long. */
const FIRST_WAIT = 250;

/** Milliseconds until a request times out; large objects are slow. */
const PATIENCE = 600_000;

/** The largest object that one PUT takes, in bytes (5 GiB). */
const MAX_OBJECT = 5 * 2 ** 30;

/**
 * Reads the settings that the AWS tools read from the environment.
 *
 * @param what The store, for the message.
 * @throws If there are no keys.
 */
function s3Environment(what: string): S3Settings {
  const get = (...names: string[]) =>
    names.map((name) => machine.env(name)).find((value) => value);
  const accessKeyId = get("AWS_ACCESS_KEY_ID");
  const secretAccessKey = get("AWS_SECRET_ACCESS_KEY");
  if (!accessKeyId || !secretAccessKey) {
    throw cannot(
      `use ${what}`,
      "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
      "none",
    );
  }
  return {
    accessKeyId,
    secretAccessKey,
    sessionToken: get("AWS_SESSION_TOKEN"),
    region: get("AWS_REGION", "AWS_DEFAULT_REGION"),
    endpoint: get("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
  };
}

/** The address of a bucket's prefix, with a slash at its end. */
function addressOf(where: string, { region, endpoint }: S3Settings): string {
  const [, bucket, prefix] =
    /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/(.*?))?\/*$/
      .exec(where) ?? [];
  if (!bucket) throw cannot("open a store", "s3://bucket/prefix", where);
  const amazon = `s3.${region ?? "us-east-1"}.amazonaws.com`;
  const base = endpoint !== undefined
    ? `${endpoint.replace(/\/+$/, "")}/${bucket}`
    // The certificate's wildcard does not match names with dots.
    : bucket.includes(".")
    ? `https://${amazon}/${bucket}`
    : `https://${bucket}.${amazon}`;
  const folders = (prefix ?? "").split("/").filter((part) => part !== "");
  return [base, ...folders.map(encodeURIComponent), ""].join("/");
}

/**
 * A store in a bucket; this machine works in a local copy.
 *
 * @param where `s3://bucket/prefix`.
 * @param copy Folder of the local copy.
 * @param settings Access to the bucket. @default the environment's
 * @throws If the bucket does not answer or refuses.
 */
export async function bucketStore(
  where: string,
  copy: string,
  settings: S3Settings = s3Environment(where),
): Promise<SharedStore> {
  const base = addressOf(where, settings);
  const send = sender(where, settings);
  const limited = limit(AT_ONCE);
  /** Objects known to be in the bucket; they are never changed. */
  const known = new Set<string>();

  const pullOne = async (path: string): Promise<boolean> => {
    const file = joinPath(copy, path);
    if (await exists(file)) return true;
    const found = await send("GET", base + path);
    if (!found) return false;
    await writeAtomic(file, found);
    known.add(path);
    return true;
  };
  const pushOne = async (path: string): Promise<void> => {
    if (known.has(path)) return;
    if (!await send("HEAD", base + path)) {
      const file = joinPath(copy, path);
      const size = (await machine.files.stat(file))?.size;
      if (size === undefined) {
        throw cannot("hand out work", `${path} in ${where} or ${copy}`, "none");
      }
      if (size > MAX_OBJECT) {
        throw cannot(
          `write to ${where}`,
          `at most ${MAX_OBJECT} bytes`,
          `${size} bytes of ${path}`,
        );
      }
      await send("PUT", base + path, await readBytes(file));
    }
    known.add(path);
  };
  return {
    name: where,
    id: await bucketIdentity(where, base, send),
    folder: copy,
    async pull(paths) {
      const found = await Promise.all(
        paths.map((path) => limited(() => pullOne(path))),
      );
      return found.every((there) => there);
    },
    async push(paths) {
      await Promise.all(paths.map((path) => limited(() => pushOne(path))));
    },
  };
}

/** Sends a request; gives the object, nothing where there is none. */
type Send = (
  method: "GET" | "HEAD" | "PUT",
  url: string,
  body?: Uint8Array<ArrayBuffer>,
  headers?: Readonly<Record<string, string>>,
) => Promise<Uint8Array<ArrayBuffer> | undefined>;

/** The answer to a PUT of an object that should not be there, but is. */
class AlreadyThere extends Error {}

function sender(where: string, settings: S3Settings): Send {
  const { attempts = 6, region = "us-east-1", ...keys } = settings;
  const client = new AwsClient({ ...keys, region, service: "s3", retries: 0 });
  return async (method, url, body, headers = {}) => {
    // Signed with the content's hash, so the server checks the content.
    const hash = await sha256(body ?? "");
    let problem = "";
    for (let attempt = 0; attempt < attempts; attempt++) {
      if (attempt > 0) {
        const wait = FIRST_WAIT * 2 ** (attempt - 1);
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
      try {
        const answer = await client.fetch(url, {
          method,
          body,
          headers: { ...headers, "x-amz-content-sha256": hash },
          signal: AbortSignal.timeout(PATIENCE),
        });
        const content = new Uint8Array(await answer.arrayBuffer());
        if (answer.ok) return content;
        if (answer.status === 404 && method !== "PUT") {
          if (!/NoSuchBucket/.test(textOf(content))) return undefined;
        }
        if (answer.status === 412) throw new AlreadyThere();
        problem = `${answer.status} ${reasonIn(content)}`.trim();
        if (answer.status < 500 && answer.status !== 429) break;
      } catch (error) {
        if (error instanceof AlreadyThere) throw error;
        problem = reasonOf(error);
      }
    }
    const doing = method === "PUT" ? "write to" : "read from";
    throw cannot(
      `${doing} ${where}`,
      "an answer of the bucket",
      `${problem} (${new URL(url).host})`,
    );
  };
}

function textOf(content: Uint8Array): string {
  return new TextDecoder().decode(content.subarray(0, 4096));
}

/** The error message in S3's XML. */
function reasonIn(content: Uint8Array): string {
  const part = (name: string) =>
    new RegExp(`<${name}>([^<]*)</${name}>`).exec(textOf(content))?.[1];
  return [part("Code"), part("Message")].filter((one) => one).join(": ");
}

/** Reads the identity, or gives one to a store that has none. */
async function bucketIdentity(
  where: string,
  base: string,
  send: Send,
): Promise<string> {
  const url = base + STORE_FILE;
  const read = async () => {
    const found = await send("GET", url);
    const from = `${where}/${STORE_FILE}`;
    return found && identityIn(parseJson(textOf(found), from), from);
  };
  const there = await read();
  if (there !== undefined) return there;
  const own = new TextEncoder().encode(storeText(crypto.randomUUID()));
  try {
    await send("PUT", url, own, { "if-none-match": "*" });
  } catch (error) {
    if (!(error instanceof AlreadyThere)) throw error;
  }
  // If two machines write at once, both use the identity that is there
  // afterwards.
  const written = await read();
  if (written !== undefined) return written;
  throw cannot(`write to ${where}`, "what was written to be there", "nothing");
}

/** Limits the number of concurrent tasks. */
function limit(most: number): <T>(task: () => Promise<T>) => Promise<T> {
  let running = 0;
  const waiting: (() => void)[] = [];
  return async (task) => {
    while (running >= most) {
      await new Promise<void>((resolve) => waiting.push(resolve));
    }
    running++;
    try {
      return await task();
    } finally {
      running--;
      waiting.shift()?.();
    }
  };
}
