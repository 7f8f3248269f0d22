import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fold, key, stream } from "../../src/core/random.ts";
import { joinPath, writeAtomic } from "../../src/io/files.ts";
import {
  type DType,
  encodeFloat,
  encodeSafetensors,
  isFloat,
  openSafetensors,
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../../src/io/safetensors.ts";

function raw(
  dtype: DType,
  shape: number[],
  values: ArrayBufferView<ArrayBuffer>,
): RawTensor {
  const data = new Uint8Array(
    values.buffer,
    values.byteOffset,
    values.byteLength,
  );
  return { dtype, shape, data };
}

/** Bytes of an element of the usual types. */
const SIZES: Readonly<Record<string, number>> = {
  ...{ F64: 8, F32: 4, F16: 2, BF16: 2, BOOL: 1 },
  ...{ I64: 8, I32: 4, I16: 2, I8: 1, U64: 8, U32: 4, U16: 2, U8: 1 },
};

const elementBytes = (entry: { dtype: string }) => SIZES[entry.dtype];

/** The bytes of a file with any header at all. */
function file(header: string | Uint8Array, data: number, length?: number) {
  const text = typeof header === "string"
    ? new TextEncoder().encode(header)
    : header;
  const bytes = new Uint8Array(8 + text.length + data);
  new DataView(bytes.buffer).setBigUint64(
    0,
    BigInt(length ?? text.length),
    true,
  );
  bytes.set(text, 8);
  return bytes;
}

Deno.test("a file written by hand after the format's description is read", async () => {
  const bytes = file(
    '{"__metadata__":{"format":"pt"},' +
      '"b":{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]},' +
      '"a":{"dtype":"F16","shape":[],"data_offsets":[0,2]},' +
      '"empty":{"dtype":"I64","shape":[0,3],"data_offsets":[10,10]}}   ',
    10,
  );
  const view = new DataView(bytes.buffer);
  view.setUint16(bytes.length - 10, 0x3e00, true);
  view.setFloat32(bytes.length - 8, -2.25, true);
  view.setFloat32(bytes.length - 4, 1e10, true);
  const open = await openSafetensors(bytes);
  assertEquals(open.metadata, { format: "pt" });
  assertEquals([...open.entries.keys()], ["a", "b", "empty"]);
  // b is not aligned to 4 bytes in the file.
  assertEquals(
    toFloat32(await open.read("b")),
    new Float32Array([-2.25, 1e10]),
  );
  assertEquals((await open.read("b")).shape, [2, 1]);
  assertEquals(toFloat32(await open.read("a")), new Float32Array([1.5]));
  assertEquals(toFloat32(await open.read("empty")), new Float32Array(0));
  await assertRejects(() => open.read("c"), Error, '"c"');
});

Deno.test("every half widens exactly and narrows back to its bits", () => {
  const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const wide = toFloat32(raw("F16", [65536], bits));
  const view = new DataView(new ArrayBuffer(2));
  for (let i = 0; i < 65536; i++) {
    view.setUint16(0, i);
    // DataView's half is the engine's own, not this library's.
    assert(Object.is(wide[i], view.getFloat16(0)), `bits ${i}`);
  }
  const back = new Uint16Array(encodeFloat(wide, "F16").buffer as ArrayBuffer);
  for (let i = 0; i < 65536; i++) {
    if (!Number.isNaN(wide[i])) assertEquals(back[i], bits[i]);
    else assert((back[i] & 0x7fff) > 0x7c00);
  }
});

Deno.test("narrowing to half rounds to nearest, ties to even, at every half", () => {
  const halves = toFloat32(
    raw("F16", [0x7c01], Uint16Array.from({ length: 0x7c01 }, (_, i) => i)),
  );
  // The step above the largest half would be 65536: from its midpoint, infinity.
  halves[0x7c00] = 65536;
  const nudge = new Float32Array(1);
  const nudgeBits = new Uint32Array(nudge.buffer);
  const near: number[] = [], want: number[] = [];
  for (let i = 0; i < 0x7c00; i++) {
    nudge[0] = (halves[i] + halves[i + 1]) / 2;
    near.push(nudge[0]);
    want.push(i + (i & 1));
    nudgeBits[0] -= 1;
    near.push(nudge[0]);
    want.push(i);
    nudgeBits[0] += 2;
    near.push(nudge[0]);
    want.push(i + 1);
  }
  const narrow = (values: Float32Array) =>
    new Uint16Array(encodeFloat(values, "F16").buffer as ArrayBuffer);
  assertEquals(narrow(Float32Array.from(near)), Uint16Array.from(want));
  assertEquals(
    narrow(Float32Array.from(near, (x) => -x)),
    Uint16Array.from(want, (bits) => bits | 0x8000),
  );
  assertEquals(
    narrow(new Float32Array([1e30, -Infinity, 1e-45, -1e-30])),
    new Uint16Array([0x7c00, 0xfc00, 0, 0x8000]),
  );
});

Deno.test("bfloat16 widens exactly and narrows to nearest, ties to even", () => {
  const bits = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const wide = toFloat32(raw("BF16", [65536], bits));
  const back = new Uint16Array(
    encodeFloat(wide, "BF16").buffer as ArrayBuffer,
  );
  for (let i = 0; i < 65536; i++) {
    if (!Number.isNaN(wide[i])) assertEquals(back[i], bits[i]);
    else assert((back[i] & 0x7fff) > 0x7f80);
  }
  const from = (...list: number[]) =>
    new Float32Array(Uint32Array.from(list).buffer);
  assertEquals(
    new Uint16Array(
      encodeFloat(
        from(
          0x3f808000,
          0x3f818000,
          0x3f808001,
          0x3f807fff,
          0x7f7fffff,
          0x7f800001,
        ),
        "BF16",
      ).buffer as ArrayBuffer,
    ),
    new Uint16Array([0x3f80, 0x3f82, 0x3f81, 0x3f80, 0x7f80, 0x7fc0]),
  );
});

Deno.test("every dtype is read as numbers", () => {
  const cases: [RawTensor, number[]][] = [
    [raw("F64", [2], new Float64Array([0.1, -1e300])), [
      Math.fround(0.1),
      -Infinity,
    ]],
    [raw("I64", [2], new BigInt64Array([-5n, 2n ** 40n])), [-5, 2 ** 40]],
    [raw("I32", [2], new Int32Array([-5, 7])), [-5, 7]],
    [raw("I16", [2], new Int16Array([-5, 7])), [-5, 7]],
    [raw("I8", [2], new Int8Array([-5, 7])), [-5, 7]],
    [raw("U8", [2], new Uint8Array([5, 255])), [5, 255]],
    [raw("U16", [2], new Uint16Array([5, 65535])), [5, 65535]],
    [raw("U32", [2], new Uint32Array([5, 2 ** 31 - 128])), [5, 2 ** 31 - 128]],
    [raw("U64", [2], new BigUint64Array([5n, 7n])), [5, 7]],
    [raw("BOOL", [3], new Uint8Array([0, 1, 7])), [0, 1, 1]],
  ];
  for (const [tensor, values] of cases) {
    assertEquals(toFloat32(tensor), Float32Array.from(values), tensor.dtype);
  }
  assertThrows(
    () => toFloat32(raw("F32", [3], new Float32Array(2))),
    Error,
    "12 bytes",
  );
});

Deno.test("floats of 8 bits widen exactly", () => {
  const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
  const all = (dtype: DType) => toFloat32(raw(dtype, [256], bytes));
  // E5M2 is the upper half of an F16; E4M3 has an F16's fraction, three bits of
  // it, and exponents that are 8 apart.
  const halves = (shift: number) =>
    toFloat32(
      raw(
        "F16",
        [256],
        Uint16Array.from(
          bytes,
          (b) => (b & 0x80) << 8 | (b & 0x7f) << shift,
        ),
      ),
    );
  assertEquals(all("F8_E5M2"), halves(8));
  const wide = halves(7).map((v) => v * 2 ** 8);
  wide[0x7f] = wide[0xff] = NaN;
  assertEquals(all("F8_E4M3"), wide);
  assertEquals(all("F8_E4M3")[0x7e], 448);
  // With another bias, no infinity and no −0.
  const narrow = halves(7).map((v) => v * 2 ** 7);
  narrow[0x80] = NaN;
  const fnuz = all("F8_E4M3FNUZ");
  assertEquals(fnuz, narrow);
  assertEquals(Math.max(...fnuz.filter((v) => !Number.isNaN(v))), 240);
  const top = all("F8_E5M2FNUZ");
  assertEquals([top[0x01], top[0x7f], top[0x80]], [2 ** -17, 57344, NaN]);
  const powers = all("F8_E8M0");
  assertEquals([powers[0], powers[127], powers[255]], [2 ** -127, 1, NaN]);
});

Deno.test("a dtype refuses no file: only who reads its numbers is told", async () => {
  const entry = (dtype: string, shape: string, from: number, to: number) =>
    `{"dtype":"${dtype}","shape":${shape},"data_offsets":[${from},${to}]}`;
  const bytes = file(
    `{"a":${entry("C64", "[2]", 0, 16)},"b":${entry("F4", "[4]", 16, 18)},` +
      `"c":${entry("F6_E2M3", "[4]", 18, 21)},` +
      `"d":${entry("NEW_9", "[3]", 21, 25)},"e":${entry("U8", "[1]", 25, 26)}}`,
    26,
  );
  bytes[bytes.length - 1] = 7;
  const open = await openSafetensors(bytes);
  assertEquals([...open.entries.values()].map(({ dtype }) => dtype), [
    ...["C64", "F4", "F6_E2M3", "NEW_9", "U8"],
  ]);
  assertEquals(toFloat32(await open.read("e")), new Float32Array([7]));
  const others: [string, RawTensor][] = [];
  for (const name of "abcd") {
    const tensor = await open.read(name);
    others.push([name, tensor]);
    assertThrows(() => toFloat32(tensor), Error, `got ${tensor.dtype}`);
  }
  // Copied byte by byte.
  const copy = await openSafetensors(encodeSafetensors(others));
  for (const [name, tensor] of others) {
    assertEquals(await copy.read(name), tensor);
  }
  assertEquals(["F8_E4M3", "BF16", "C64", "I8"].map(isFloat), [
    ...[true, true, false, false],
  ]);
});

Deno.test("what is saved under the name of a safetensors file is named", async () => {
  const text = (t: string) => new TextEncoder().encode(t);
  const cases: [Uint8Array, string][] = [
    [
      text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
      "a git-lfs pointer",
    ],
    [text("<!DOCTYPE html><html>Please log in</html>"), "an HTML page"],
    [text('{"error": "Invalid username or password."}'), "a JSON text"],
    [text("GGUF\x03\0\0\0\0\0\0\0\0\0\0\0"), "a GGUF file"],
    [text("PK\x03\x04archive/data.pkl"), "a zip archive"],
    [new Uint8Array([0x80, 2, 0x7d, 0x71, 0, 0x2e, 1, 1, 1]), "a pickle"],
    [new Uint8Array(1000), "nothing but zeros"],
    [new Uint8Array(0), "an empty file"],
  ];
  for (const [bytes, message] of cases) {
    await assertRejects(
      () => openSafetensors(bytes),
      Error,
      `expected a safetensors file${
        bytes.length ? "" : " of at least 8 bytes"
      }, got ${message}`,
    );
  }
});

Deno.test("what is read does not share memory with the file", async () => {
  const values = new Float32Array([1, 2]);
  const bytes = encodeSafetensors([["a", raw("F32", [2], values)]]);
  const open = await openSafetensors(bytes);
  const first = await open.read("a");
  toFloat32(first)[0] = 9;
  first.data.fill(0);
  assertEquals(toFloat32(await open.read("a")), values);
});

const SAMPLE: [string, RawTensor][] = [
  ["z.bias", raw("F16", [3], new Uint16Array([0x3c00, 0, 0x4000]))],
  ["0", raw("F32", [2, 2], new Float32Array([1, 2, 3, 4]))],
  ["ids", raw("I64", [1, 2], new BigInt64Array([3n, 4n]))],
  ['é"', raw("F32", [], new Float32Array([5]))],
  ["flag", raw("BOOL", [1], new Uint8Array([1]))],
];

Deno.test("a written file reads back equal, aligned, and the same each time", async () => {
  const folder = await Deno.makeTempDir();
  const path = joinPath(folder, "a.safetensors");
  await writeSafetensors(path, SAMPLE, { format: "pt", "0": "x" });
  const bytes = await Deno.readFile(path);
  assertEquals(
    bytes,
    encodeSafetensors(new Map(SAMPLE), { format: "pt", "0": "x" }),
  );
  assertEquals(
    Number(new DataView(bytes.buffer).getBigUint64(0, true)) % 8,
    0,
  );
  const open = await openSafetensors(path);
  assertEquals(open.metadata, { format: "pt", "0": "x" });
  // Wide types first, else as given.
  assertEquals([...open.entries.keys()], ["ids", "0", 'é"', "z.bias", "flag"]);
  for (const [name, tensor] of SAMPLE) {
    const entry = open.entries.get(name)!;
    assertEquals(entry.begin % elementBytes(entry), 0, name);
    assertEquals(await open.read(name), tensor);
  }
  // Reads that overlap in time must not disturb each other.
  const all = await Promise.all(SAMPLE.map(([name]) => open.read(name)));
  assertEquals(all, SAMPLE.map(([, tensor]) => tensor));
  open.close();
  open.close();
  await assertRejects(() => open.read("0"), Error, "closed");
  const url = await openSafetensors(new URL(`file://${path}`));
  assertEquals(url.entries.size, SAMPLE.length);
  url.close();
  await Deno.remove(folder, { recursive: true });
});

Deno.test("lazy tensors are made in turn and checked", async () => {
  const folder = await Deno.makeTempDir();
  const path = joinPath(folder, "a.safetensors");
  const made: string[] = [];
  const lazy = SAMPLE.map(([name, { dtype, shape, data }]) =>
    [name, {
      dtype,
      shape,
      load: () => {
        made.push(name);
        return Promise.resolve(data);
      },
    }] as [
      string,
      { dtype: DType; shape: number[]; load: () => Promise<Uint8Array> },
    ]
  );
  await writeSafetensors(path, lazy);
  assertEquals(await Deno.readFile(path), encodeSafetensors(SAMPLE));
  assertEquals(made, ["ids", "0", 'é"', "z.bias", "flag"]);
  lazy[1][1].load = () => Promise.resolve(new Uint8Array(3));
  await assertRejects(() => writeSafetensors(path, lazy), Error, "16 bytes");
  assertEquals(await Deno.readFile(path), encodeSafetensors(SAMPLE));
  await Deno.remove(folder, { recursive: true });
});

Deno.test("an empty file of tensors is a file", async () => {
  const open = await openSafetensors(encodeSafetensors([]));
  assertEquals(open.entries.size, 0);
  assertEquals(open.metadata, {});
});

Deno.test("what cannot be written is refused", () => {
  const one = raw("F32", [1], new Float32Array(1));
  const refused: [[string, RawTensor][], string][] = [
    [[["a", one], ["a", one]], "every tensor name once"],
    [[["__metadata__", one]], "every tensor name once"],
    [[["a", { ...one, shape: [2] }]], "8 bytes"],
    [[["a", { ...one, shape: [-1] }]], "4"],
  ];
  for (const [tensors, message] of refused) {
    assertThrows(() => encodeSafetensors(tensors), Error, message);
  }
});

Deno.test("a broken header is an error that names the rule and the key", async () => {
  const t = (dtype: string, shape: string, offsets: string) =>
    `{"dtype":${dtype},"shape":${shape},"data_offsets":${offsets}}`;
  const good = t('"F32"', "[1]", "[0,4]");
  const cases: [Uint8Array, string][] = [
    [new Uint8Array(7), "at least 8 bytes"],
    [file("{}", 0, 3), "header length of 3"],
    [file("{}", 0, 2 ** 53), "header length"],
    [file("", 0), "JSON"],
    [file("[]", 0), "object"],
    [file(' {"a":1}', 0), "starts with {"],
    [file("\ufeff{}", 0), "JSON"],
    [file("{", 0), "JSON"],
    [file(new Uint8Array([0x7b, 0xff, 0x7d]), 0), "UTF-8"],
    [file('{"a":1}', 0), '"a"'],
    [file('{"a":null}', 0), '"a"'],
    [file(`{"a":${good.replace("}", ',"x":1}')}}`, 4), '"a"'],
    [file(`{"a":${good},"a":${good}}`, 4), '"a" twice'],
    [file(`{"a":${good},"\\u0061":${good}}`, 4), '"a" twice'],
    [file(`{"a":${good.replace("{", '{"shape":[9],')}}`, 4), '"shape" twice'],
    [file(`{"a":${t('"f32"', "[1]", "[0,4]")}}`, 4), "f32"],
    [file(`{"a":${t('"F4"', "[3]", "[0,2]")}}`, 2), "(F4 [3])"],
    [file(`{"a":${t('"F8_E4M3"', "[1]", "[0,2]")}}`, 2), "1 bytes"],
    [file(`{"a":${t('"toString"', "[1]", "[0,4]")}}`, 4), "toString"],
    [file(`{"a":${t("4", "[1]", "[0,4]")}}`, 4), "dtype"],
    [file(`{"a":${t('"F32"', "1", "[0,4]")}}`, 4), "shape"],
    [file(`{"a":${t('"F32"', "[-1]", "[0,4]")}}`, 4), "shape"],
    [file(`{"a":${t('"F32"', "[1.5]", "[0,6]")}}`, 6), "shape"],
    [file(`{"a":${t('"F32"', '["1"]', "[0,4]")}}`, 4), "shape"],
    [file(`{"a":${t('"F32"', "[9007199254740993]", "[0,4]")}}`, 4), "shape"],
    // 2^32 · 2^32 · 4 is 0 in 64-bit arithmetic.
    [
      file(`{"a":${t('"F32"', "[4294967296,4294967296]", "[0,0]")}}`, 0),
      "safe number",
    ],
    [file(`{"a":${t('"F32"', "[2]", "[0,4]")}}`, 4), "8 bytes"],
    [file(`{"a":${t('"F32"', "[1]", "[0]")}}`, 4), "data_offsets"],
    [file(`{"a":${t('"F32"', "[1]", "[4,0]")}}`, 4), "begin ≤ end"],
    [file(`{"a":${t('"F32"', "[1]", "[4,8]")}}`, 8), "hole"],
    [
      file(`{"a":${good},"b":${t('"F32"', "[1]", "[8,12]")}}`, 12),
      "hole",
    ],
    [file(`{"a":${good},"b":${t('"F32"', "[1]", "[2,6]")}}`, 6), "overlap"],
    [file(`{"a":${good},"b":${good}}`, 4), "overlap"],
    [file(`{"a":${good}}`, 3), "truncated"],
    [file(`{"a":${good}}`, 5), "4 bytes of tensor data"],
    [
      file(`{"a":${t('"U8"', "[1000000000000]", "[0,1000000000000]")}}`, 3),
      "truncated",
    ],
    [file('{"__metadata__":[]}', 0), "__metadata__"],
    [file('{"__metadata__":{"k":1}}', 0), '"k" to be text'],
    [file('{"__metadata__":null}', 0), "__metadata__"],
    [file("[".repeat(1_000_000), 0), "JSON"],
  ];
  for (const [bytes, message] of cases) {
    await assertRejects(() => openSafetensors(bytes), Error, message);
  }
});

Deno.test("a file that is no file is an error that names it", async () => {
  const folder = await Deno.makeTempDir();
  const missing = joinPath(folder, "none.safetensors");
  await assertRejects(() => openSafetensors(missing), Error, missing);
  await assertRejects(() => openSafetensors(folder), Error, folder);
  // Truncated on disk after it was opened.
  const path = joinPath(folder, "a.safetensors");
  await writeSafetensors(path, SAMPLE);
  const open = await openSafetensors(path);
  await Deno.truncate(path, 40);
  await assertRejects(() => open.read("0"), Error, path);
  open.close();
  await assertRejects(() => openSafetensors(path), Error, path);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("only what is asked for is read from a large file", async () => {
  const folder = await Deno.makeTempDir();
  const path = joinPath(folder, "large.safetensors");
  const size = 2 ** 34; // 16 GiB: sparse on disk, impossible in memory
  const header =
    `{"a":{"dtype":"U8","shape":[${size}],"data_offsets":[0,${size}]},` +
    `"b":{"dtype":"U8","shape":[2],"data_offsets":[${size},${size + 2}]}}`;
  await writeAtomic(path, file(header, 0));
  try {
    await Deno.truncate(path, 8 + header.length + size + 2);
    const open = await openSafetensors(path);
    assertEquals((await open.read("b")).data, new Uint8Array(2));
    open.close();
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("5,000 mutated files: an error or a consistent file, in bounded memory", async () => {
  const original = encodeSafetensors(SAMPLE, { format: "pt" });
  const dataStart = 8 +
    Number(new DataView(original.buffer).getBigUint64(0, true));
  const text = new TextDecoder().decode(original.subarray(8, dataStart));
  const draw = stream(fold(key(20240229), "safetensors fuzz"));
  const words = [
    "0",
    "-1",
    "1e308",
    "4294967296",
    "9007199254740992",
    "null",
    "true",
    "[]",
    "{}",
    '""',
    '"F64"',
    '"BF16"',
    '"__metadata__"',
    ",",
    "[",
    "{",
    "}",
    "]",
    "\\u0000",
    "\ud83d\ude00",
    '"a":',
    "1.5",
  ];
  const mutate = (): Uint8Array => {
    const kind = draw.integer(6);
    if (kind === 0) { // bytes of the prefix or the header
      const bytes = original.slice();
      for (let n = 1 + draw.integer(4); n > 0; n--) {
        bytes[draw.integer(dataStart)] = draw.integer(256);
      }
      return bytes;
    }
    if (kind === 1) return original.slice(0, draw.integer(original.length));
    if (kind === 2) { // longer than it should be
      const bytes = new Uint8Array(original.length + 1 + draw.integer(64));
      bytes.set(original);
      return bytes;
    }
    if (kind === 3) { // the length in the prefix
      const bytes = original.slice();
      new DataView(bytes.buffer).setBigUint64(
        0,
        BigInt(Math.floor(2 ** (64 * draw.uniform()))),
        true,
      );
      return bytes;
    }
    // A word put somewhere in the header's text; or a number changed.
    const at = draw.integer(text.length);
    const word = words[draw.integer(words.length)];
    const changed = kind === 4
      ? text.slice(0, at) + word + text.slice(at + draw.integer(6))
      : text.replace(
        /\d+/g,
        (digits) => draw.uniform() < 0.1 ? `${draw.integer(50)}` : digits,
      );
    const bytes = file(changed, original.length - dataStart);
    bytes.set(
      original.subarray(dataStart),
      bytes.length - (original.length - dataStart),
    );
    return bytes;
  };
  const before = Deno.memoryUsage();
  const started = performance.now();
  let refused = 0;
  for (let i = 0; i < 5000; i++) {
    const bytes = mutate();
    try {
      const open = await openSafetensors(bytes);
      // Accepted: then the tensors tile the data and all can be read.
      let at = 0;
      for (const [name, { dtype, shape, begin, end }] of open.entries) {
        assertEquals(begin, at);
        const tensor = await open.read(name);
        assertEquals(tensor.data.length, end - begin);
        const count = shape.reduce((n, size) => n * size, 1);
        // A mutated dtype may be one that nobody knows: listed, not read.
        if (/^([FIU]\d+|BF16|BOOL)$/.test(dtype) && SIZES[dtype]) {
          assertEquals(count * SIZES[dtype], end - begin);
          toFloat32(tensor);
        }
        at = end;
      }
      const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
      assertEquals(8 + length + at, bytes.length);
    } catch (error) {
      assert(
        error instanceof Error && error.message.startsWith("Cannot "),
        `mutation ${i}: ${error}`,
      );
      refused++;
    }
  }
  const after = Deno.memoryUsage();
  assert(refused > 4000, `${refused} refused`);
  // 5,000 files of a kilobyte, and what the engine keeps of them. (Not rss:
  // that is of the process, which runs other test files at the same time.)
  assert(after.external - before.external < 32 * 2 ** 20);
  assert(after.heapTotal - before.heapTotal < 128 * 2 ** 20);
  assert(performance.now() - started < 60_000);
});
