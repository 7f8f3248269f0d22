/**
 * tests/fixtures/pickle was written by torch.save of torch 1.13.0a0:
 * `edlora_official.pth` holds tensors of lora/edlora_official.safetensors as
 * the official trainer nests them (some of its layers, taken out without torch),
 * `small.pth` one of each kind of thing.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { joined } from "../../src/core/joined.ts";
import { fold, key, stream } from "../../src/core/random.ts";
import {
  isPickle,
  openPickle,
  openTensors,
  type PickleFile,
  PickleTensor,
} from "../../src/formats/pickle.ts";
import {
  openSafetensors,
  type RawTensor,
  toFloat32,
} from "../../src/io/safetensors.ts";
import { fixture, fixturePath } from "../helpers.ts";

/** The parts one after another; text as UTF-8. */
function bytes(...parts: (number[] | string | Uint8Array)[]): Uint8Array {
  return joined(
    Uint8Array,
    parts.map((part) =>
      typeof part === "string" ? new TextEncoder().encode(part) : part
    ),
  );
}

const u16 = (n: number) => [n & 255, n >> 8];
const u32 = (n: number) => [
  n & 255,
  (n >>> 8) & 255,
  (n >>> 16) & 255,
  n >>> 24,
];

/** CRC-32, bit by bit: not the reader's table. */
function crc(data: Uint8Array): number {
  let value = 0xffffffff;
  for (const byte of data) {
    for (let bit = 0; bit < 8; bit++) {
      const odd = (value ^ (byte >> bit)) & 1;
      value = (value >>> 1) ^ (odd ? 0xedb88320 : 0);
    }
  }
  return (value ^ 0xffffffff) >>> 0;
}

/** A zip archive of stored files. */
function zip(
  files: [name: string, data: Uint8Array][],
  options: { method?: number; claim?: number } = {},
): Uint8Array {
  const { method = 0 } = options;
  const body: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let at = 0;
  for (const [name, data] of files) {
    const text = new TextEncoder().encode(name);
    const size = options.claim ?? data.length;
    const shared = bytes(
      u16(0),
      u16(method),
      u32(0),
      u32(crc(data)),
      u32(size),
      u32(size),
      u16(text.length),
      u16(0),
    );
    const local = bytes(u32(0x04034b50), u16(20), shared, text, data);
    directory.push(bytes(
      u32(0x02014b50),
      u16(20),
      u16(20),
      shared,
      new Uint8Array(10),
      u32(at),
      text,
    ));
    body.push(local);
    at += local.length;
  }
  const rows = bytes(...directory);
  return bytes(
    ...body,
    rows,
    u32(0x06054b50),
    u32(0),
    u16(files.length),
    u16(files.length),
    u32(rows.length),
    u32(at),
    u16(0),
  );
}

const archive = (code: Uint8Array, ...storages: Uint8Array[]) =>
  zip([
    ["archive/data.pkl", code],
    ...storages.map((data, i): [string, Uint8Array] => [
      `archive/data/${i}`,
      data,
    ]),
  ]);

const proto = [0x80, 2];
const short = (text: string) => bytes([0x8c, text.length], text);
const global = (module: string, name: string) =>
  bytes("c", `${module}\n${name}\n`);

/** A tensor of float32 in storage "0", by hand. */
function tensor(
  { shape = [2], stride = [1], offset = 0, count = 2, type = "FloatStorage" },
): Uint8Array {
  const tuple = (values: number[]) =>
    bytes("(", ...values.map((n) => bytes("J", u32(n))), "t");
  return bytes(
    global("torch._utils", "_rebuild_tensor_v2"),
    "(",
    "(",
    short("storage"),
    global("torch", type),
    short("0"),
    short("cpu"),
    bytes("J", u32(count)),
    "tQ",
    bytes("J", u32(offset)),
    tuple(shape),
    tuple(stride),
    [0x89],
    global("collections", "OrderedDict"),
    ")R",
    "t",
    "R",
  );
}

const dictionary = (name: string, value: Uint8Array) =>
  bytes(proto, "}", short(name), value, "s.");

const two = new Uint8Array(new Float32Array([1, 2]).buffer);

Deno.test("an official ED-LoRA .pth holds what its safetensors twin holds", async () => {
  const file = await openPickle(
    fixturePath("pickle/edlora_official.pth"),
  );
  const twin = await openSafetensors(
    fixturePath("lora/edlora_official.safetensors"),
  );
  // The learned tokens and some layers of both networks.
  const names = [...file.entries.keys()];
  const count = (start: string) =>
    names.filter((name) => name.startsWith(start)).length;
  assertEquals(
    ["new_concept_embedding.", "text_encoder.", "unet."].map(count),
    [2, 2, 24],
  );
  assertEquals(names.length, 28);
  for (const name of names) {
    assertEquals(await file.read(name), await twin.read(name), name);
  }
  twin.close();
  file.close();
  await assertRejects(
    () => file.read("new_concept_embedding.<potter1>"),
    Error,
    "open file",
  );
});

Deno.test("every kind of tensor and plain data is read", async () => {
  const file = await openPickle(await fixture("pickle/small.pth"));
  const floats = async (name: string) => [...toFloat32(await file.read(name))];
  // A transposed view: stored 3×4, seen 4×3.
  assertEquals(file.entries.get("model.weight")!.shape, [4, 3]);
  assertEquals(
    await floats("model.weight"),
    [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11],
  );
  assertEquals(await floats("model.row"), [4, 5, 6, 7]);
  assertEquals(await floats("param"), [1.5, -2]);
  assertEquals(await floats("half"), [1, 0.5]);
  assertEquals(await floats("bf16"), [3]);
  assertEquals(await floats("scalar"), [7]);
  assertEquals(file.entries.get("scalar")!.shape, []);
  assertEquals(file.entries.get("empty")!.shape, [0, 3]);
  assertEquals(await floats("empty"), []);
  assertEquals([...toFloat32(await file.read("ids"))], [1, -2]);
  assertEquals([...toFloat32(await file.read("mask"))], [1, 0]);
  assertEquals([...toFloat32(await file.read("u8"))], [255]);
  assertEquals([...toFloat32(await file.read("list.0"))], [1]);
  const value = file.value as ReadonlyMap<string, unknown>;
  assertEquals(value.get("big"), 2n ** 70n);
  assertEquals(value.get("neg"), -3);
  const list = value.get("list") as unknown[];
  assert(list[0] instanceof PickleTensor);
  assertEquals(list.slice(1), [5, null, true, 2.5, "text", [1, 2]]);
  assertEquals(file.entries.size, 11);
  await assertRejects(() => file.read("nothing"), Error, '"nothing"');
  file.close();
});

Deno.test("a hand-made archive is read, in protocol 4 too", async () => {
  for (
    const code of [
      dictionary("w", tensor({})),
      bytes(
        [0x80, 4, 0x95, ...u32(99), ...u32(0)],
        dictionary("w", tensor({})).subarray(2),
      ),
    ]
  ) {
    const file = await openPickle(archive(code, two));
    assertEquals([...toFloat32(await file.read("w"))], [1, 2]);
  }
});

const refused: [what: string, code: Uint8Array, message: string][] = [
  [
    "os.system",
    bytes(proto, global("os", "system"), short("id"), [0x85], "R."),
    "os.system: pickle files can run any code",
  ],
  [
    "eval by name from the stack",
    bytes([0x80, 4], short("builtins"), short("eval"), [0x93], "."),
    "builtins.eval",
  ],
  [
    "a name of JavaScript's objects",
    bytes(proto, global("constructor", "constructor"), "."),
    "constructor.constructor",
  ],
  [
    "a class and its attributes (a whole pickled module)",
    bytes(proto, global("torch.nn.modules.linear", "Linear"), ")", [0x81], "."),
    "torch.nn.modules.linear.Linear",
  ],
  ["NEWOBJ", bytes(proto, "))", [0x81], "."), "instruction 0x81"],
  ["INST", bytes(proto, "(ios\nsystem\n."), "instruction 0x69"],
  ["EXT1", bytes(proto, [0x82, 1], "."), "instruction 0x82"],
  ["BUILD on a dictionary", bytes(proto, "}}b."), "an object with attributes"],
  [
    "BUILD with other state",
    bytes(
      proto,
      global("collections", "OrderedDict"),
      ")R",
      "}",
      short("x"),
      "Nsb.",
    ),
    "an object with attributes",
  ],
  [
    "a call of something that is data",
    bytes(proto, short("os"), ")R."),
    "a call of a known name",
  ],
  [
    "a call of a storage type",
    bytes(proto, global("torch", "FloatStorage"), ")R."),
    "a function",
  ],
  [
    "a name as data",
    bytes(proto, global("torch", "FloatStorage"), "."),
    "data",
  ],
  [
    "a name inside a list",
    bytes(proto, "]", global("collections", "OrderedDict"), "a."),
    "data",
  ],
  ["text protocol 0", bytes("I1\n."), "a pickle"],
  ["protocol 9", bytes([0x80, 9], "N."), "protocol 2 to 5"],
  ["no end", bytes(proto, "}"), "a whole pickle"],
  ["an end too early", bytes(proto, "N.N"), "the end of the pickle"],
  ["too much on the stack", bytes(proto, "NN."), "the end of the pickle"],
  ["an empty stack", bytes(proto, "."), "a value on the stack"],
  ["a missing mark", bytes(proto, "Nt."), "a mark"],
  ["a memo that is not there", bytes(proto, "h", [7], "."), "the memo"],
  [
    "text of 4 GB",
    bytes(proto, "X", [255, 255, 255, 255], "."),
    "a whole pickle",
  ],
  [
    "text of 2⁶³ bytes",
    bytes(proto, [0x8d, 0, 0, 0, 0, 0, 0, 0, 128], "."),
    "a length below",
  ],
  ["broken UTF-8", bytes(proto, [0x8c, 1, 0xff], "."), "UTF-8"],
  [
    "a key twice",
    bytes(proto, "}", "K", [1], "Ns", "K", [1], "Ns."),
    "every key once",
  ],
  ["a key that is a list", bytes(proto, "}]Ns."), "text or a number"],
  ["odd items", bytes(proto, "}(Nu."), "pairs"],
  ["a tuple that grows", bytes(proto, ")Na."), "a list to fill"],
  [
    "a tensor beyond its storage",
    dictionary("w", tensor({ shape: [3] })),
    "at most the 2 values of storage 0",
  ],
  [
    "an offset beyond its storage",
    dictionary("w", tensor({ offset: 1 })),
    "values within the 2",
  ],
  [
    "a stride of 0 that makes much of little",
    dictionary("w", tensor({ shape: [1 << 20, 1 << 20], stride: [0, 0] })),
    "at most the 2 values",
  ],
  [
    "a shape beyond exact integers",
    dictionary(
      "w",
      tensor({
        shape: new Array(8).fill(1 << 30),
        stride: new Array(8).fill(0),
      }),
    ),
    "at most the 2 values",
  ],
  [
    "a negative stride",
    dictionary("w", tensor({ stride: [-1] })),
    "a shape or stride",
  ],
  [
    "a stride too many",
    dictionary("w", tensor({ stride: [1, 1] })),
    "a stride for each dimension",
  ],
  [
    "a storage of another type's size",
    dictionary("w", tensor({ type: "ComplexFloatStorage" })),
    "ComplexFloatStorage",
  ],
  [
    "a list that holds itself",
    bytes(proto, "]q", [0], "h", [0], "a."),
    "nested values",
  ],
  [
    "an endless tree of shared lists",
    bytes(
      proto,
      "]q",
      [0],
      ...Array.from(
        { length: 20 },
        (_, i) =>
          bytes("0](", ...new Array(10).fill(bytes("h", [i])), "eq", [i + 1]),
      ),
      ".",
    ),
    "values",
  ],
  [
    "a million objects",
    bytes(proto, new Uint8Array(1_000_000).fill(0x7d)),
    "objects",
  ],
];

for (const [what, code, message] of refused) {
  Deno.test(`refused: ${what}`, async () => {
    await assertRejects(() => openPickle(archive(code, two)), Error, message);
  });
}

Deno.test("archives that are not PyTorch's are refused", async () => {
  const code = dictionary("w", tensor({}));
  const cases: [Uint8Array, string][] = [
    [zip([["a/data.pkl", code], ["b/data.pkl", code]]), "one data.pkl"],
    [zip([["readme.txt", two]]), "one data.pkl"],
    [
      zip([["a/data.pkl", code], ["a/byteorder", bytes("big")]]),
      "little-endian",
    ],
    [zip([["a/data.pkl", code], ["a/data.pkl", code]]), "every file once"],
    [zip([["a/data.pkl", code]], { method: 8 }), "packed"],
    [zip([["a/data.pkl", code]], { claim: 0x7fffffff }), "room"],
    [zip([["a/data.pkl", code]]), "the storage 0"],
    [bytes([0x80, 2, 0x8a, 10]), "a bare pickle"],
    [bytes("PK"), "a zip archive"],
    [new Uint8Array(0), "a zip archive"],
    [archive(code, two).subarray(0, 200), "truncated"],
    [archive(new Uint8Array(5 << 20), two), "a data.pkl of at most"],
  ];
  for (const [data, message] of cases) {
    await assertRejects(() => openPickle(data), Error, message);
  }
  await assertRejects(() => openPickle("no/such.pth"), Error, "readable");
  assert(isPickle(archive(code, two)) && isPickle(bytes([0x80, 2, 0x8a, 10])));
  // A header of 640 bytes begins like a pickle.
  assert(!isPickle(bytes([0x80, 2, 0, 0, 0, 0, 0, 0], "{}")));
});

Deno.test("a file is opened by what is in it, whatever its name", async () => {
  for (
    const name of [
      "pickle/edlora_official.pth",
      "lora/edlora_official.safetensors",
    ]
  ) {
    for (const source of [fixturePath(name), await fixture(name)]) {
      const file = await openTensors(source);
      assertEquals(file.entries.get("new_concept_embedding.<potter1>")!.shape, [
        16,
        32,
      ]);
      file.close();
    }
  }
  await assertRejects(() => openTensors("no/such"), Error, "readable");
});

Deno.test("damage is found by the checksums", async () => {
  const data = archive(dictionary("w", tensor({})), two);
  const at = data.findIndex((_, i) => data[i] === 0x80 && data[i + 1] === 0x3f);
  assert(at > 0, "1.0 is in the file");
  data[at] ^= 1;
  const file = await openPickle(data);
  await assertRejects(() => file.read("w"), Error, "damaged");
});

/** All tensors of a file, or undefined where it is refused with our error. */
async function readAll(
  data: Uint8Array,
): Promise<Map<string, RawTensor> | undefined> {
  let file: PickleFile | undefined;
  try {
    file = await openPickle(data);
    const all = new Map<string, RawTensor>();
    for (const name of file.entries.keys()) {
      all.set(name, await file.read(name));
    }
    return all;
  } catch (error) {
    // Anything but our own message would be a crash of the reader.
    assert(
      error instanceof Error && error.message.startsWith("Cannot read "),
      `${error}`,
    );
    return undefined;
  } finally {
    file?.close();
  }
}

const MUTATIONS = 2500;
const SEED = 20231123;

Deno.test(`${2 * MUTATIONS} mutated files: refused, or read as they were`, async () => {
  const original = await fixture("pickle/small.pth");
  const expected = (await readAll(original))!;
  const longest = 48;
  for (const { data } of expected.values()) assert(data.length <= longest);
  const random = stream(fold(key(SEED), "pickle"));
  const pick = (n: number) => random.integer(n);
  const mutate = (data: Uint8Array, from: number, to: number): Uint8Array => {
    const size = to - from;
    switch (pick(5)) {
      case 0: // a bit
        data[from + pick(size)] ^= 1 << pick(8);
        return data;
      case 1: // a byte
        data[from + pick(size)] = pick(256);
        return data;
      case 2: // some bytes
        for (let i = 1 + pick(8); i > 0; i--) {
          data[from + pick(size)] = pick(256);
        }
        return data;
      case 3: { // a run of equal bytes, so that lengths become huge
        const at = from + pick(size);
        data.fill(pick(2) * 255, at, Math.min(at + 1 + pick(8), to));
        return data;
      }
      default: { // a piece somewhere else
        const at = from + pick(size);
        const piece = data.slice(at, Math.min(at + 1 + pick(16), to));
        data.set(piece, from + pick(size - piece.length));
        return data;
      }
    }
  };
  const started = performance.now();
  let accepted = 0;
  for (let i = 0; i < MUTATIONS; i++) {
    let data = mutate(original.slice(), 0, original.length);
    if (pick(10) === 0) data = data.subarray(0, pick(data.length));
    const read = await readAll(data);
    if (!read) continue;
    accepted++;
    // Times and padding may differ; the tensors may not.
    assertEquals(read, expected, `mutation ${i}`);
  }
  assert(accepted > 0 && accepted < MUTATIONS, `${accepted} accepted`);
  // Now with the checksum repaired, so that the program itself is mutated.
  const begin = original.findIndex((_, i) =>
    original[i] === 0x80 && original[i + 1] === 2 && original[i + 2] === 0x7d
  );
  const end =
    original.findIndex((_, i) =>
      i > begin && original[i] === 0x2e && original[i - 1] === 0x75
    ) + 1;
  assert(begin > 0 && end > begin + 500, `program at ${begin} to ${end}`);
  const checksum = u32(crc(original.subarray(begin, end)));
  const places = Array.from(original.keys()).filter((i) =>
    checksum.every((byte, k) => original[i + k] === byte)
  );
  assert(places.length >= 1, "the program's checksum is in the file");
  accepted = 0;
  for (let i = 0; i < MUTATIONS; i++) {
    const data = mutate(original.slice(), begin, end);
    const repaired = u32(crc(data.subarray(begin, end)));
    for (const place of places) data.set(repaired, place);
    const read = await readAll(data);
    if (!read) continue;
    accepted++;
    // Another program may name and cut the 11 tensors differently, but none
    // gets longer than the longest storage (4×3 floats are 48 bytes).
    for (const { data, shape } of read.values()) {
      assert(data.length <= longest, `mutation ${i}: [${shape}]`);
    }
  }
  assert(accepted > 0 && accepted < MUTATIONS, `${accepted} accepted`);
  // 5,000 files of 3 KB take about a second; a hang would be minutes.
  assert(performance.now() - started < 120_000, "time");
});
