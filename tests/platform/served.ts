/**
 * A server of folders on this machine.
 *
 * @module
 */

const TYPES: Record<string, string> = {
  js: "text/javascript",
  ts: "text/typescript",
  html: "text/html",
  css: "text/css",
  png: "image/png",
  json: "application/json",
  wasm: "application/wasm",
};

/** A server of folders. */
export interface Served extends AsyncDisposable {
  /** Its address, without a final slash. */
  readonly url: string;
  /** Paths that were asked for, and whether a part of them. */
  readonly asked: { path: string; method: string; range: boolean }[];
}

/** Settings of {@linkcode serve}. */
export interface ServeOptions {
  /** Whether pages are cross-origin isolated. */
  readonly isolated?: boolean;
  /** Whether parts of a file may be asked for. @default true */
  readonly ranges?: boolean;
  /** The port. @default a free one */
  readonly port?: number;
  /** Which files there are. @default all */
  readonly only?: (path: string) => boolean;
  /** Pages and other files that are on no disk, by path. */
  readonly pages?: Readonly<Record<string, string>>;
}

/**
 * Serves a folder on the loopback interface.
 *
 * @param folder The folder.
 * @param options Isolation, ranges, further pages.
 */
export function served(folder: string, options: ServeOptions = {}): Served {
  const { isolated = false, ranges = true, pages = {}, only, port = 0 } =
    options;
  const asked: Served["asked"] = [];
  const headers: Record<string, string> = isolated
    ? {
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
    }
    : {};
  const server = Deno.serve(
    { hostname: "127.0.0.1", port, onListen: () => {} },
    async (request) => {
      const path = decodeURIComponent(new URL(request.url).pathname);
      const range = /^bytes=(\d+)-(\d+)$/.exec(
        request.headers.get("Range") ?? "",
      );
      asked.push({ path, method: request.method, range: range !== null });
      const type = path.endsWith("/")
        ? TYPES.html
        : TYPES[path.slice(path.lastIndexOf(".") + 1)] ??
          "application/octet-stream";
      const all: Record<string, string> = { ...headers, "Content-Type": type };
      let bytes: Uint8Array<ArrayBuffer>;
      try {
        if (only && !only(path)) throw new Error("not one of them");
        bytes = path in pages
          ? new TextEncoder().encode(pages[path])
          : await Deno.readFile(
            folder + path.replace(/\/$/, "/index.html"),
          );
      } catch {
        return new Response("not found", { status: 404, headers });
      }
      all["Content-Length"] = String(bytes.length);
      // Files do not change while tests run.
      all.ETag = `"${bytes.length}"`;
      if (request.method === "HEAD") {
        return new Response(null, { headers: all });
      }
      if (!range || !ranges) return new Response(bytes, { headers: all });
      const part = bytes.subarray(Number(range[1]), Number(range[2]) + 1);
      all["Content-Length"] = String(part.length);
      all["Content-Range"] = `bytes ${range[1]}-${
        Number(range[1]) + part.length - 1
      }/${bytes.length}`;
      return new Response(part, { status: 206, headers: all });
    },
  );
  return {
    url: `http://127.0.0.1:${server.addr.port}`,
    asked,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}
