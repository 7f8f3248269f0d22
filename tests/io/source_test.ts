import { assert, assertEquals, assertRejects } from "@std/assert";
import { exists, readText, writeAtomic } from "../../src/io/files.ts";
import {
  encodeSafetensors,
  openSafetensors,
} from "../../src/io/safetensors.ts";
import { openBytes, openSource, readSource } from "../../src/io/source.ts";

/** Twenty million bytes, more than two windows of 8 MiB. */
const big = Uint8Array.from({ length: 20_000_000 }, (_, i) => i * 7 + (i >> 8));

/** A server of `big`, of a small text and of an empty file. */
function server(ranges: boolean) {
  const asked: string[] = [];
  const files: Record<string, Uint8Array<ArrayBuffer>> = {
    "/big": big,
    "/empty": new Uint8Array(0),
    "/text.json": new TextEncoder().encode('{"a": 1}'),
  };
  const http = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen: () => {} },
    (request) => {
      const { pathname } = new URL(request.url);
      const bytes = files[pathname];
      const range = request.headers.get("Range");
      asked.push(`${request.method} ${pathname} ${range ?? ""}`.trim());
      if (!bytes) return new Response("no", { status: 404 });
      if (request.method === "HEAD") return new Response(null);
      if (!ranges || !range) return new Response(bytes);
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(range)!.map(Number);
      if (from >= bytes.length) return new Response(null, { status: 416 });
      const part = bytes.slice(from, to + 1);
      return new Response(part, {
        status: 206,
        headers: {
          "Content-Range": `bytes ${from}-${
            from + part.length - 1
          }/${bytes.length}`,
        },
      });
    },
  );
  return {
    url: `http://127.0.0.1:${http.addr.port}`,
    asked,
    [Symbol.asyncDispose]: () => http.shutdown(),
  };
}

for (const ranges of [true, false]) {
  Deno.test(`a server's file is read ${ranges ? "in pieces" : "whole where it has no ranges"}`, async () => {
    await using place = server(ranges);
    const source = await openSource(`${place.url}/big`);
    assertEquals(source.size, big.length);
    for (
      const [begin, end] of [
        [0, 10],
        [8_388_600, 8_388_620],
        [19_999_990, 20_000_000],
        [5, 17_000_000],
        [7, 7],
      ]
    ) {
      assertEquals(await source.read(begin, end), big.slice(begin, end));
    }
    source.close();
    const parts = place.asked.filter((line) => line.includes("bytes="));
    // The first request tells the size; no piece of 8 MiB is fetched twice.
    assertEquals(place.asked.length, ranges ? 4 : 1);
    assertEquals(new Set(place.asked).size, place.asked.length);
    assert(parts.length > 0);
  });

  Deno.test(`text, an empty file and a missing one come over HTTP (ranges: ${ranges})`, async () => {
    await using place = server(ranges);
    assertEquals(await readText(`${place.url}/text.json`), '{"a": 1}');
    assertEquals((await readSource(new URL(`${place.url}/empty`))).length, 0);
    assertEquals(await exists(`${place.url}/text.json`), true);
    assertEquals(await exists(`${place.url}/none`), false);
    await assertRejects(
      () => readText(`${place.url}/none`),
      Error,
      `Cannot read ${place.url}/none: expected an answer 200, got 404`,
    );
  });
}

Deno.test("a path, a file: URL, its text, a Blob and bytes are read alike", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/a b.safetensors`;
    const data = new Uint8Array([0, 0, 128, 63]);
    const bytes = encodeSafetensors([["x", {
      dtype: "F32",
      shape: [1],
      data,
    }]]);
    await writeAtomic(path, bytes);
    const url = new URL(`file://${folder}/a%20b.safetensors`);
    for (
      const from of [path, url, url.href, new Blob([bytes.slice()]), bytes]
    ) {
      const file = await openSafetensors(from);
      assertEquals((await file.read("x")).data, data);
      file.close();
      const local = await openBytes(from);
      assertEquals(local.size, bytes.length);
      local.close();
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("a picked file is named in messages", async () => {
  await assertRejects(
    () => openSafetensors(new File(["PK\x03\x04 and more"], "hero.pth")),
    Error,
    "Cannot read hero.pth: expected a safetensors file",
  );
});

Deno.test("nothing is written to an address", async () => {
  await assertRejects(
    () => writeAtomic("http://127.0.0.1:1/x", "text"),
    Error,
    "Cannot write http://127.0.0.1:1/x: expected a path on this machine, got an address",
  );
});

Deno.test("a stream gets what a file would, and is aborted by an error", async () => {
  const parts: Uint8Array[] = [];
  let aborted: unknown;
  const stream = () =>
    new WritableStream<Uint8Array>({
      write: (chunk) => void parts.push(chunk),
      abort: (reason) => void (aborted = reason),
    });
  await writeAtomic(stream(), "text");
  assertEquals(new TextDecoder().decode(parts[0]), "text");
  await assertRejects(
    () =>
      writeAtomic(
        stream(),
        (function* () {
          yield new Uint8Array(1);
          throw new Error("enough");
        })(),
      ),
    Error,
    "enough",
  );
  assertEquals((aborted as Error).message, "enough");
});
