/**
 * What this library asks of the machine: Deno, Node or a browser.
 *
 * @module
 */

/** What stands under a path. */
export interface FileStat {
  /** Whether it is a file, a folder, a symbolic link or a device. */
  readonly kind: "file" | "folder" | "link" | "other";
  /** Bytes. */
  readonly size: number;
}

/** An open file. */
export interface OpenFile {
  /** What it is. */
  stat(): Promise<FileStat>;
  /**
   * Reads into memory at a position, in one step, so that reads may overlap.
   *
   * @returns Bytes read, less than there is room for; 0 at the end.
   */
  readAt(position: number, into: Uint8Array): number;
  /** Writes all of the bytes at a position. */
  writeAt(position: number, bytes: Uint8Array): Promise<void>;
  /** Cuts the file off. */
  truncate(size: number): Promise<void>;
  /** Waits until what was written is on the disk. */
  sync(): Promise<void>;
  /** Closes the file. */
  close(): void;
}

/** Files; every path may be a `file:` URL, and every method throws its error. */
export interface Files {
  /** All bytes of a file. */
  read(path: string | URL): Promise<Uint8Array<ArrayBuffer>>;
  /** What stands under a path, links followed; nothing if nothing does. */
  stat(path: string | URL): Promise<FileStat | undefined>;
  /** The same of a link itself. */
  linkStat(path: string): Promise<FileStat | undefined>;
  /** Names in a folder and what they are, in no order. */
  list(
    folder: string | URL,
  ): Promise<{ name: string; kind: FileStat["kind"] }[]>;
  /** Makes a folder and those above it, where they are missing. */
  makeFolder(path: string): Promise<void>;
  /**
   * Opens a file: to read, to write where there is none, or to read and write.
   *
   * @returns The file; nothing if it should be new and there is one.
   */
  open(path: string | URL, mode: "read" | "update"): Promise<OpenFile>;
  /** The same. */
  open(path: string | URL, mode: "new"): Promise<OpenFile | undefined>;
  /** Renames a file; one of the new name is replaced. */
  rename(from: string, to: string): Promise<void>;
  /** Removes a file, or a folder with all that is in it. */
  remove(path: string): Promise<void>;
  /** Copies a file. */
  copy(from: string, to: string): Promise<void>;
  /** Makes a symbolic link; false if the path is taken. */
  link(target: string, path: string): Promise<boolean>;
  /** What a symbolic link says. */
  readLink(path: string): Promise<string>;
  /** The one path of what is there. */
  realPath(path: string): Promise<string>;
  /**
   * Waits until no other process holds the lock of this file.
   *
   * @returns Gives the lock back.
   */
  lock(path: string): Promise<() => void>;
}

/** A checksum that grows with what arrives. */
export interface Hash {
  /** Adds bytes, or text as UTF-8. */
  update(data: Uint8Array | string): Hash;
  /** Ends it. */
  digest(encoding: "hex"): string;
}

/** A worker as its host sees it. */
export interface Thread {
  /** Sends a message; buffers may be handed over. */
  post(message: unknown, transfer: Transferable[]): void;
  /** Ends the worker. */
  terminate(): void;
}

/** What a host is told by a worker. */
export interface ThreadEvents {
  /** A message arrived. */
  message(data: unknown): void;
  /** The worker ended by an error, or sent what cannot be copied. */
  error(message: string): void;
}

/** The machine. */
export interface Machine {
  /** Which runtime it is. */
  readonly name: "deno" | "node" | "browser";
  /** Processors, at least 1. */
  readonly processors: number;
  /** Files, where there are some. */
  readonly files: Files;
  /** Bytes of memory, where the machine says. */
  memory(): number | undefined;
  /** A variable of the environment. */
  env(name: string): string | undefined;
  /** A value as text for people. */
  inspect(value: unknown): string;
  /** Tells the developer something once, outside of results. */
  warn(line: string): void;
  /** A name that no other running process has. */
  processName(): string;
  /** Starts a checksum. */
  hash(algorithm: "sha256" | "sha1"): Hash;
  /** WebGPU, where it is. */
  gpu(): GPU | undefined;
  /**
   * The address of a file in a package.
   *
   * @param path Package and path in it.
   * @param version The package's version, for modules loaded over https.
   * @returns The address; nothing where nobody knows.
   */
  packageFile(path: string, version: string): URL | undefined;
  /**
   * The folder that a package's WebAssembly is in, with a final slash: the
   * package's own or, in a browser, the one that the bundle is in.
   *
   * @param path Package and path of a file in that folder.
   * @param version The package's version.
   */
  wasmFolder(path: string, version: string): string;
  /**
   * The file at an address as it was kept from the last time, or fetched and
   * kept; nothing where the machine keeps none.
   */
  kept(url: string): Promise<Blob | undefined>;
  /** Starts a worker of a module. */
  startThread(module: URL, name: string, events: ThreadEvents): Thread;
  /**
   * Starts a thread that runs one function to its end. It does not keep the
   * program running; where it cannot start, nothing happens.
   *
   * @param run Uses nothing from outside of itself: its text is sent.
   * @param data Posted to it.
   */
  startHelper<T>(run: (data: T) => void, data: T): Pick<Thread, "terminate">;
  /** Whether this thread may sleep until a word of memory changes. */
  mayWait(): boolean;
  /** Whether this is a worker that another thread started. */
  inWorker(): boolean;
  /**
   * In a worker: listens to the host.
   *
   * @returns Sends a message to the host.
   */
  listen(message: (data: unknown) => void): Thread["post"];
}
