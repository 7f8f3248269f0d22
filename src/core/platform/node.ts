/**
 * The machine under Node 22 and later.
 *
 * Node's modules are asked for when they are needed: a bundler for browsers
 * sees none of them.
 *
 * @module
 */
import type crypto from "node:crypto";
import type fs from "node:fs";
import type os from "node:os";
import type util from "node:util";
import type threads from "node:worker_threads";
import type { FileStat, Machine, OpenFile } from "./machine_type.ts";
import { packageFile, packageFolder } from "./packages.ts";

interface Modules {
  "node:crypto": typeof crypto;
  "node:fs": typeof fs;
  "node:os": typeof os;
  "node:util": typeof util;
  "node:worker_threads": typeof threads;
}

/** What is used here of Node's global. */
interface Process {
  readonly versions?: { readonly node?: string };
  readonly pid: number;
  readonly env: Readonly<Record<string, string | undefined>>;
  getBuiltinModule?<K extends keyof Modules>(name: K): Modules[K];
  kill(pid: number, signal: 0): void;
}

const node = () => (globalThis as { process?: Process }).process;

/** Whether this is Node. */
export function isNode(): boolean {
  return node()?.versions?.node !== undefined;
}

/** Node's checksums, which Deno has, too. */
export const nodeHash: Machine["hash"] = (algorithm) =>
  builtin("node:crypto").createHash(algorithm);

function builtin<K extends keyof Modules>(name: K): Modules[K] {
  const found = node()?.getBuiltinModule?.(name);
  if (found) return found;
  throw new Error(
    `Cannot use ${name}: expected Node 22 or later, got ${node()?.versions?.node}`,
  );
}

const codeOf = (error: unknown) => (error as { code?: string }).code;

/** Whether something is missing. */
const missing = (error: unknown) => {
  if (["ENOENT", "ENOTDIR"].includes(codeOf(error)!)) return undefined;
  throw error;
};

/** Whether something is there already. */
const taken = (error: unknown) => {
  if (codeOf(error) === "EEXIST") return undefined;
  throw error;
};

const kindOf = (
  entry: Pick<fs.Stats, "isFile" | "isDirectory" | "isSymbolicLink">,
): FileStat["kind"] =>
  entry.isFile()
    ? "file"
    : entry.isDirectory()
    ? "folder"
    : entry.isSymbolicLink()
    ? "link"
    : "other";

const statOf = (stats: fs.Stats): FileStat => ({
  kind: kindOf(stats),
  size: stats.size,
});

async function openFile(
  path: string | URL,
  flags: string | number,
): Promise<OpenFile> {
  const { promises, readSync } = builtin("node:fs");
  const file = await promises.open(path, flags);
  return {
    stat: async () => statOf(await file.stat()),
    readAt: (position, into) =>
      readSync(file.fd, into, 0, into.length, position),
    async writeAt(position, bytes) {
      for (let done = 0; done < bytes.length;) {
        const { bytesWritten } = await file.write(
          bytes,
          done,
          bytes.length - done,
          position + done,
        );
        done += bytesWritten;
      }
    },
    truncate: (size) => file.truncate(size),
    sync: () => file.sync(),
    close: () => void file.close(),
  };
}

/** How often a lock is looked at that another process has, in milliseconds. */
const LOCK_WAIT = 200;

/**
 * Node has no locks of files: the lock is a file that says whose it is, and one
 * of a process that has ended counts as free.
 */
async function lock(path: string): Promise<() => void> {
  const { promises, readFileSync, rmSync } = builtin("node:fs");
  const own = `${path}.pid`;
  const me = `${node()!.pid}`;
  for (;;) {
    const made = await promises.writeFile(own, me, { flag: "wx" })
      .then(() => true, taken);
    if (made) return () => rmSync(own, { force: true });
    try {
      node()!.kill(Number(readFileSync(own, "utf8")), 0);
    } catch {
      rmSync(own, { force: true });
      continue;
    }
    await new Promise((resolve) => setTimeout(resolve, LOCK_WAIT));
  }
}

/** Threads that end with the program; Deno's own workers keep it running. */
export const nodeHelpers: Pick<Machine, "startHelper" | "mayWait"> = {
  startHelper(run, data) {
    const { Worker } = builtin("node:worker_threads");
    const worker = new Worker(
      `(${run})(process.getBuiltinModule("node:worker_threads").workerData);`,
      { eval: true, workerData: data },
    );
    worker.on("error", () => {});
    worker.unref();
    return { terminate: () => void worker.terminate() };
  },
  mayWait: () => true,
};

/** Node. */
export function nodeMachine(): Machine {
  return {
    name: "node",
    get processors() {
      return builtin("node:os").availableParallelism();
    },
    memory: () => builtin("node:os").totalmem(),
    env: (name) => node()!.env[name],
    inspect: (value) => builtin("node:util").inspect(value),
    // deno-lint-ignore no-console
    warn: (line) => console.warn(line),
    processName: () => `${builtin("node:os").hostname()}-${node()!.pid}`,
    gpu: () => (globalThis.navigator as { gpu?: GPU } | undefined)?.gpu,
    hash: nodeHash,
    packageFile,
    wasmFolder: packageFolder,
    kept: () => Promise.resolve(undefined),
    startThread(module, name, { message, error }) {
      const { Worker } = builtin("node:worker_threads");
      const worker = new Worker(module, { name });
      worker.on("message", message);
      worker.on("error", (e) => error(`stopped: ${(e as Error).message}`));
      worker.on("messageerror", () => error("sent what cannot be copied"));
      return {
        post: (data, transfer) => worker.postMessage(data, transfer as never),
        terminate: () => void worker.terminate(),
      };
    },
    ...nodeHelpers,
    inWorker: () => !builtin("node:worker_threads").isMainThread,
    listen(message) {
      const port = builtin("node:worker_threads").parentPort;
      port?.on("message", message);
      return (data, transfer) => port?.postMessage(data, transfer as never);
    },
    files: {
      read: async (path) =>
        Uint8Array.from(await builtin("node:fs").promises.readFile(path)),
      stat: async (path) => {
        const stats = await builtin("node:fs").promises.stat(path)
          .catch(missing);
        return stats && statOf(stats);
      },
      linkStat: async (path) => {
        const stats = await builtin("node:fs").promises.lstat(path)
          .catch(missing);
        return stats && statOf(stats);
      },
      list: async (folder) =>
        (await builtin("node:fs").promises.readdir(folder, {
          withFileTypes: true,
        })).map((entry) => ({ name: entry.name, kind: kindOf(entry) })),
      makeFolder: async (path) => {
        await builtin("node:fs").promises.mkdir(path, { recursive: true });
      },
      async open(path: string | URL, mode: "read" | "new" | "update") {
        const { O_CREAT, O_RDWR } = builtin("node:fs").constants;
        if (mode === "read") return await openFile(path, "r");
        if (mode === "update") return await openFile(path, O_CREAT | O_RDWR);
        return await openFile(path, "wx").catch(taken) as OpenFile;
      },
      rename: (from, to) => builtin("node:fs").promises.rename(from, to),
      remove: (path) =>
        builtin("node:fs").promises.rm(path, { recursive: true }),
      copy: (from, to) => builtin("node:fs").promises.copyFile(from, to),
      link: async (target, path) =>
        await builtin("node:fs").promises.symlink(target, path)
          .then(() => true, taken) ?? false,
      readLink: (path) => builtin("node:fs").promises.readlink(path),
      realPath: (path) => builtin("node:fs").promises.realpath(path),
      lock,
    },
  };
}
