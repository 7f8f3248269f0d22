/**
 * A store that several machines see: a shared folder, or a bucket with a local
 * copy of what is used.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { assertWritable, exists, joinPath, readJson } from "../io/files.ts";

/** A store that several machines see. */
export interface SharedStore {
  /** Its path or URL, as given by the user. */
  readonly name: string;
  /** Its identity: the same on all machines that use the store. */
  readonly id: string;
  /** The folder that this machine reads and writes. */
  readonly folder: string;
  /**
   * Fetches files into the folder.
   *
   * @param paths Below the store.
   * @returns Whether all of them are there now.
   */
  pull(paths: readonly string[]): Promise<boolean>;
  /**
   * Makes files of the folder available to the other machines.
   *
   * @param paths Below the store.
   * @throws If a file exists in neither place.
   */
  push(paths: readonly string[]): Promise<void>;
}

/** Access to a bucket. */
export interface S3Settings {
  /** Access key. */
  readonly accessKeyId: string;
  /** Secret key. */
  readonly secretAccessKey: string;
  /** Token of temporary keys. */
  readonly sessionToken?: string;
  /** Region. @default us-east-1 */
  readonly region?: string;
  /** Address of a server other than Amazon's: MinIO, R2, Ceph. */
  readonly endpoint?: string;
  /** Attempts per request that gets no answer or a 5xx status. @default 6 */
  readonly attempts?: number;
}

/** The file that gives a store its identity. */
export const STORE_FILE = "store.json";

/** Whether a store is a bucket. */
export function isBucket(where: string): boolean {
  return where.startsWith("s3://");
}

/**
 * A folder that several machines mount.
 *
 * @param folder The folder.
 * @throws If it cannot be written.
 */
export async function folderStore(folder: string): Promise<SharedStore> {
  if (/^[a-z][a-z0-9+.-]+:\/\//i.test(folder)) {
    throw cannot("open a store", "a folder or s3://bucket/prefix", folder);
  }
  await assertWritable(folder);
  const missing = async (paths: readonly string[]) => {
    for (const path of paths) {
      if (!await exists(joinPath(folder, path))) return path;
    }
  };
  return {
    name: folder,
    id: await folderIdentity(joinPath(folder, STORE_FILE)),
    folder,
    async pull(paths) {
      return await missing(paths) === undefined;
    },
    async push(paths) {
      const path = await missing(paths);
      if (path === undefined) return;
      throw cannot("hand out work", `${path} in the store`, "none");
    },
  };
}

/** Reads the identity, or gives one to a store that has none. */
async function folderIdentity(path: string): Promise<string> {
  const id = crypto.randomUUID();
  const file = await machine.files.open(path, "new");
  if (file) {
    await file.writeAt(0, new TextEncoder().encode(storeText(id)))
      .finally(() => file.close());
    return id;
  }
  // Another machine may be between creating the file and writing to it.
  for (let attempt = 1;; attempt++) {
    try {
      return identityIn(await readJson(path), path);
    } catch (error) {
      if (attempt === 10) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

/**
 * The text of the identity file.
 *
 * @param id The identity.
 */
export function storeText(id: string): string {
  return JSON.stringify({ id }) + "\n";
}

/**
 * The identity in the file's document.
 *
 * @param document Parsed JSON.
 * @param from Where it came from, for the error.
 * @throws If it has none.
 */
export function identityIn(document: unknown, from: string): string {
  const { id } = (document ?? {}) as { id?: unknown };
  if (typeof id === "string" && id !== "") return id;
  throw cannot(`read ${from}`, "the identity of a store", document);
}
