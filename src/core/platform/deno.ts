/**
 * The machine under Deno.
 *
 * @module
 */
import type { FileStat, Machine, OpenFile } from "./machine_type.ts";
import { nodeHash, nodeHelpers } from "./node.ts";
import { packageFile, packageFolder } from "./packages.ts";
import { web } from "./web.ts";

/**
 * Whether something is missing: Windows and Unix differ where a file stands in
 * a folder's place.
 */
const missing = (error: unknown) => {
  const { NotFound, NotADirectory } = Deno.errors;
  if (error instanceof NotFound || error instanceof NotADirectory) {
    return undefined;
  }
  throw error;
};

const statOf = (info: Deno.FileInfo): FileStat => ({
  kind: kindOf(info),
  size: info.size,
});

function kindOf(
  { isFile, isDirectory, isSymlink }: Pick<
    Deno.FileInfo,
    "isFile" | "isDirectory" | "isSymlink"
  >,
): FileStat["kind"] {
  return isFile
    ? "file"
    : isDirectory
    ? "folder"
    : isSymlink
    ? "link"
    : "other";
}

function openFile(file: Deno.FsFile): OpenFile {
  return {
    stat: async () => statOf(await file.stat()),
    readAt(position, into) {
      file.seekSync(position, Deno.SeekMode.Start);
      return file.readSync(into) ?? 0;
    },
    async writeAt(position, bytes) {
      await file.seek(position, Deno.SeekMode.Start);
      for (let done = 0; done < bytes.length;) {
        done += await file.write(bytes.subarray(done));
      }
    },
    truncate: (size) => file.truncate(size),
    sync: () => file.sync(),
    close: () => file.close(),
  };
}

/** Deno. */
export function denoMachine(): Machine {
  return {
    ...web,
    ...nodeHelpers,
    name: "deno",
    memory() {
      try {
        return Deno.systemMemoryInfo().total;
      } catch {
        // Not permitted to ask.
        return undefined;
      }
    },
    env: (name) => Deno.env.get(name),
    inspect: (value) => Deno.inspect(value),
    processName: () => `${Deno.hostname()}-${Deno.pid}`,
    hash: nodeHash,
    packageFile,
    wasmFolder: packageFolder,
    kept: () => Promise.resolve(undefined),
    files: {
      read: (path) => Deno.readFile(path),
      stat: async (path) => {
        const info = await Deno.stat(path).catch(missing);
        return info && statOf(info);
      },
      linkStat: async (path) => {
        const info = await Deno.lstat(path).catch(missing);
        return info && statOf(info);
      },
      list: async (folder) =>
        (await Array.fromAsync(Deno.readDir(folder))).map((entry) => ({
          name: entry.name,
          kind: kindOf(entry),
        })),
      makeFolder: (path) => Deno.mkdir(path, { recursive: true }),
      async open(path: string | URL, mode: "read" | "new" | "update") {
        const file = await Deno.open(
          path,
          mode === "read"
            ? { read: true }
            : mode === "new"
            ? { write: true, createNew: true }
            : { create: true, read: true, write: true },
        ).catch((error) => {
          if (mode === "new" && error instanceof Deno.errors.AlreadyExists) {
            return undefined;
          }
          throw error;
        });
        return (file && openFile(file)) as OpenFile;
      },
      rename: (from, to) => Deno.rename(from, to),
      remove: (path) => Deno.remove(path, { recursive: true }),
      copy: (from, to) => Deno.copyFile(from, to),
      async link(target, path) {
        try {
          await Deno.symlink(target, path);
          return true;
        } catch (error) {
          if (error instanceof Deno.errors.AlreadyExists) return false;
          throw error;
        }
      },
      readLink: (path) => Deno.readLink(path),
      realPath: (path) => Deno.realPath(path),
      async lock(path) {
        const file = await Deno.open(path, { create: true, write: true });
        await file.lock(true);
        return () => file.close();
      },
    },
  };
}
