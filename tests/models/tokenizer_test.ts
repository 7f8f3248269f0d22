import {
  assert,
  assertEquals,
  assertNotEquals,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { fold, key, stream } from "../../src/core/random.ts";
import {
  joinPath,
  readJson,
  readText,
  writeAtomic,
  writeJson,
} from "../../src/io/files.ts";
import {
  byteAlphabet,
  createTokenizer,
  loadTokenizer,
  type Tokenizer,
} from "../../src/models/tokenizer.ts";
import { inFolder } from "../helpers.ts";

const FIXTURES = new URL("../fixtures/", import.meta.url);
const FOLDER = new URL("tiny-sd/tokenizer", FIXTURES);

/** Ids by text, from transformers 4.27.1's CLIPTokenizer without ftfy. */
const golden = await readJson<Record<string, Record<string, number[]>>>(
  new URL("expected/tokenizer.json", FIXTURES),
);
const NEW = Array.from({ length: 32 }, (_, i) => `<new${i}>`);

function assertGolden(tokenizer: Tokenizer, cases: Record<string, number[]>) {
  for (const [text, ids] of Object.entries(cases)) {
    assertEquals(tokenizer.encode(text).ids, ids, text);
  }
}

Deno.test("ids equal those of transformers, with and without added tokens", async () => {
  const tokenizer = await loadTokenizer(FOLDER);
  assertEquals(tokenizer.vocabSize, 1000);
  assertEquals(tokenizer.modelMaxLength, 77);
  assertEquals([tokenizer.bosId, tokenizer.eosId, tokenizer.padId], [
    998,
    999,
    999,
  ]);
  assertEquals(Object.keys(golden.base).length, 8);
  assertGolden(tokenizer, golden.base);
  const more = tokenizer.withAddedTokens(NEW);
  assertGolden(more, golden.base);
  assertGolden(more, golden.with_32_added_tokens_new0_new31);
  assertEquals(more.vocabSize, 1032);
  assertEquals(more.added.get("<new31>"), 1031);
});

Deno.test("any script has the ids of a second implementation", async () => {
  // Random strings and their ids from 60 lines of Python (unicodedata) written
  // after transformers 4.27.1's BasicTokenizer and CLIPTokenizer; 20,000 such
  // strings agreed when this was made, 120 of them are kept.
  const cases = await readJson<[string, number[]][]>(
    new URL("expected/tokenizer_unicode.json", FIXTURES),
  );
  assertEquals(cases.length, 120);
  const tokenizer = await loadTokenizer(FOLDER);
  for (const [text, ids] of cases) {
    assertEquals(tokenizer.tokenize(text), ids, JSON.stringify(text));
  }
});

Deno.test("Han characters outside the 16-bit plane are words, kana are not", async () => {
  const tokenizer = await loadTokenizer(FOLDER);
  const spaced = (a: string, b: string) =>
    assertEquals(tokenizer.tokenize(a), tokenizer.tokenize(b), a);
  spaced("\u{20000}\u{20001}a", "\u{20000} \u{20001} a");
  spaced("日本語", "日 本 語");
  assertNotEquals(tokenizer.tokenize("カナ"), tokenizer.tokenize("カ ナ"));
});

Deno.test("cleaning: case, space, accents, control characters, entities", async () => {
  const tokenizer = await loadTokenizer(FOLDER);
  const same = (a: string, b: string) =>
    assertEquals(tokenizer.tokenize(a), tokenizer.tokenize(b), a);
  same("A\tPHOTO\n\r of\u00a0a\u3000Cat ", "a photo of a cat");
  same("café", "cafe");
  same("cafe\u0301", "cafe");
  same("ca\u200bt\u0000 \ufffd\ud800\ufdd0", "cat");
  // Without ftfy an entity is not decoded: it is punctuation and letters.
  same("a &amp; b", "a & amp ; b");
  same("it's", "it ' s");
  assertEquals(tokenizer.tokenize(" \n\u2028 "), []);
});

Deno.test("fast cleaning keeps accents, punctuation runs and contractions", async () => {
  const fast = await loadTokenizer(FOLDER, { cleaning: "fast" });
  const basic = await loadTokenizer(FOLDER);
  assertNotEquals(fast.tokenize("café"), fast.tokenize("cafe"));
  assertEquals(fast.tokenize("cafe\u0301"), fast.tokenize("CAFÉ"));
  // 's is one word of two bytes here: "'" without, "s" with a word's end.
  assertEquals(fast.tokenize("'s"), [6, fast.idOf("s</w>")]);
  assertEquals(basic.tokenize("'s"), [
    basic.idOf("'</w>"),
    basic.idOf("s</w>"),
  ]);
  assertEquals(fast.tokenize("!?"), [0, fast.idOf("?</w>")]);
});

Deno.test("encode pads, truncates and says by how much", async () => {
  const tokenizer = await loadTokenizer(FOLDER);
  const a = tokenizer.idOf("a</w>")!;
  const fits = tokenizer.encode("a ".repeat(75));
  assertEquals(fits.truncated, 0);
  assertEquals(fits.ids, [998, ...Array(75).fill(a), 999]);
  const long = tokenizer.encode("a ".repeat(76) + "cat");
  assertEquals(long.truncated, 2);
  assertEquals(long.ids, fits.ids);
  assertEquals(tokenizer.encode("a a a", { maxLength: 4 }), {
    ids: [998, a, a, 999],
    truncated: 1,
  });
  assertEquals(tokenizer.encode("", { maxLength: 2 }).ids, [998, 999]);
  for (const maxLength of [1, 2.5, NaN]) {
    assertThrows(() => tokenizer.encode("a", { maxLength }), Error, "at least");
  }
  // A long text without a space is one word: no quadratic time.
  const started = performance.now();
  assert(tokenizer.encode("photo".repeat(40_000)).truncated > 10_000);
  assert(performance.now() - started < 10_000);
});

Deno.test("a padding token of its own pads, and matches in text as it does in transformers", async () => {
  const { spec } = await loadTokenizer(FOLDER);
  const tokenizer = createTokenizer({ ...spec, pad: "!" });
  // As the SD 2 tokenizer has it: "!" is id 0, not the word "!</w>".
  assertEquals(tokenizer.encode("cat!", { maxLength: 6 }).ids, [
    998,
    tokenizer.idOf("cat</w>"),
    0,
    999,
    0,
    0,
  ]);
});

Deno.test("special tokens in a text are themselves", async () => {
  const tokenizer = await loadTokenizer(FOLDER);
  const cat = tokenizer.idOf("cat</w>")!;
  assertEquals(tokenizer.tokenize("cat<|endoftext|>cat"), [cat, 999, cat]);
  assert(!tokenizer.tokenize("<|ENDOFTEXT|>").includes(999));
});

Deno.test("added tokens: whole, longest first, case counts, old tokenizer unchanged", async () => {
  const base = await loadTokenizer(FOLDER);
  const before = base.tokenize("<new1> cat");
  const tokenizer = base.withAddedTokens(["<new1>", "<new1>x", "Sks.*"]);
  const cat = base.idOf("cat</w>")!;
  assertEquals(tokenizer.tokenize("cat<new1>cat"), [cat, 1000, cat]);
  assertEquals(tokenizer.tokenize(" <new1>x<new1> "), [1001, 1000]);
  assertEquals(tokenizer.tokenize("Sks.* cat"), [1002, cat]);
  assertEquals(tokenizer.tokenize("sks.*"), base.tokenize("sks.*"));
  assertEquals(tokenizer.tokenize("<NEW1>"), base.tokenize("<NEW1>"));
  assertEquals(base.tokenize("<new1> cat"), before);
  assertEquals(base.vocabSize, 1000);
  assert(tokenizer.has("<new1>") && !base.has("<new1>"));
  // Adding in two steps is adding at once.
  const twice = base.withAddedTokens(["<new1>"]).withAddedTokens([
    "<new1>x",
    "Sks.*",
  ]);
  assertEquals([...twice.added], [...tokenizer.added]);
  for (const bad of ["", " ", "a ", "cat</w>", "<new1>", "<|endoftext|>"]) {
    assertThrows(
      () => tokenizer.withAddedTokens([bad]),
      Error,
      "Cannot add a token",
    );
  }
  assertThrows(() => base.withAddedTokens(["<q>", "<q>"]), Error, "<q>");
});

Deno.test("decode gives the words back", async () => {
  const base = await loadTokenizer(FOLDER);
  const tokenizer = base.withAddedTokens(["<new1>"]);
  const text = "photo of a <new1> cat , 3 日 本 ß";
  assertEquals(tokenizer.decode(tokenizer.encode(text).ids), text);
  assertEquals(tokenizer.decode([]), "");
  // Half of a two-byte character is the replacement character, not an error.
  const half = tokenizer.tokenize("ß")[0];
  assertEquals(base.decode([half]), "\ufffd");
  assertThrows(() => base.decode([1000]), Error, "ids below 1000");
  assertThrows(() => base.decode([-1]), Error, "Cannot decode");
});

Deno.test("the byte alphabet has every byte once, as CLIP orders them", () => {
  const alphabet = byteAlphabet();
  assertEquals(new Set(alphabet.map(([byte]) => byte)).size, 256);
  assertEquals(new Set(alphabet.map(([, char]) => char)).size, 256);
  assertEquals(alphabet[0], [0x21, "!"]);
  assertEquals(alphabet[188], [0, "\u0100"]);
  assertEquals(alphabet.find(([byte]) => byte === 0x20), [0x20, "\u0120"]);
});

Deno.test("a saved tokenizer loads as it was, files as transformers writes them", () =>
  inFolder(async (root) => {
    const base = await loadTokenizer(FOLDER);
    const tokenizer = base.withAddedTokens(NEW);
    await tokenizer.save(root);
    assertEquals(
      await readJson(joinPath(root, "vocab.json")),
      await readJson(new URL(`${FOLDER}/vocab.json`)),
    );
    assertEquals(
      (await readText(joinPath(root, "merges.txt"))).trim(),
      (await readText(new URL(`${FOLDER}/merges.txt`))).trim(),
    );
    assertEquals(
      await readJson(joinPath(root, "special_tokens_map.json")),
      await readJson(new URL(`${FOLDER}/special_tokens_map.json`)),
    );
    assertEquals(
      await readJson(joinPath(root, "tokenizer_config.json")),
      await readJson(new URL(`${FOLDER}/tokenizer_config.json`)),
    );
    assertEquals(
      await readJson(joinPath(root, "added_tokens.json")),
      Object.fromEntries(NEW.map((token, i) => [token, 1000 + i])),
    );
    const again = await loadTokenizer(root);
    assertEquals(again.spec, tokenizer.spec);
    assertGolden(again, golden.with_32_added_tokens_new0_new31);

    // Saved over it, a tokenizer without added tokens leaves none behind.
    await base.save(root);
    assertEquals((await loadTokenizer(root)).vocabSize, 1000);

    const fast = await loadTokenizer(FOLDER, { cleaning: "fast" });
    await fast.save(root);
    assertEquals((await loadTokenizer(root)).spec.cleaning, "fast");
  }));

/** A `tokenizer.json` with the fixture's vocabulary. */
function tokenizerJson(spec: Tokenizer["spec"], pairs: boolean): unknown {
  return {
    version: "1.0",
    added_tokens: [
      { id: 998, content: "<|startoftext|>", special: true },
      { id: 999, content: "<|endoftext|>", special: true },
      { id: 1000, content: "<new0>", special: false },
    ],
    normalizer: { type: "Sequence", normalizers: [{ type: "NFC" }] },
    model: {
      type: "BPE",
      end_of_word_suffix: "</w>",
      vocab: spec.vocab,
      merges: pairs ? spec.merges.map((m) => m.split(" ")) : spec.merges,
    },
  };
}

Deno.test("tokenizer.json alone is enough, in both spellings of merges", () =>
  inFolder(async (root) => {
    const slow = await loadTokenizer(FOLDER);
    for (const pairs of [false, true]) {
      await writeJson(
        joinPath(root, "tokenizer.json"),
        tokenizerJson(slow.spec, pairs),
      );
      const tokenizer = await loadTokenizer(root);
      assertEquals(tokenizer.spec, {
        ...slow.spec,
        added: ["<new0>"],
        cleaning: "fast",
      });
      assertEquals(tokenizer.tokenize("<new0> cat"), [
        1000,
        slow.idOf("cat</w>"),
      ]);
    }
  }));

Deno.test("every place that names special and added tokens is read", () =>
  inFolder(async (root) => {
    const base = await loadTokenizer(FOLDER);
    await base.save(root);
    const at = (name: string) => joinPath(root, name);
    await writeJson(at("tokenizer_config.json"), {
      model_max_length: 1e30,
      pad_token: "?",
      bos_token: { content: "<|startoftext|>", lstrip: false },
      added_tokens_decoder: {
        "998": { content: "<|startoftext|>" },
        "1001": { content: "<b>", special: false },
        "1000": { content: "<a>", special: false },
      },
    });
    await writeJson(at("special_tokens_map.json"), {
      pad_token: { content: "!" },
      additional_special_tokens: ["<c>", "<a>", { content: "cat</w>" }],
    });
    await writeJson(at("added_tokens.json"), { "<a>": 1000 });
    const tokenizer = await loadTokenizer(root);
    assertEquals([...tokenizer.added], [["<a>", 1000], ["<b>", 1001], [
      "<c>",
      1002,
    ]]);
    assertEquals(tokenizer.padId, 0);
    assertEquals(tokenizer.modelMaxLength, 77);
  }));

Deno.test("a broken tokenizer is an error that says what is wrong", () =>
  inFolder(async (root) => {
    const { spec } = await loadTokenizer(FOLDER);
    const wrong: [Parameters<typeof createTokenizer>[0], string][] = [
      [{ ...spec, vocab: { ...spec.vocab, more: 1001 } }, "0…1000"],
      [{ ...spec, vocab: { ...spec.vocab, more: 5 } }, "each once"],
      [{ ...spec, merges: ["a b c"] }, "a b c"],
      [{ ...spec, merges: ["qq qq"] }, "qq qq"],
      [{ ...spec, modelMaxLength: 1 }, "at least 2"],
      [{ ...spec, bos: "<s>" }, "<s>"],
      [{ ...spec, added: ["cat</w>"] }, "cat</w>"],
    ];
    for (const [bad, message] of wrong) {
      assertThrows(() => createTokenizer(bad), Error, message);
    }

    const at = (name: string) => joinPath(root, name);
    await assertRejects(() => loadTokenizer(root), Error, "vocab.json");
    await writeJson(at("vocab.json"), spec.vocab);
    await assertRejects(() => loadTokenizer(root), Error, "merges.txt");
    await writeAtomic(at("merges.txt"), spec.merges.join("\n"));
    await assertRejects(() => loadTokenizer(root), Error, "#version");
    await writeAtomic(
      at("merges.txt"),
      ["#version: 0.2", ...spec.merges].join("\r\n"),
    );
    assertEquals((await loadTokenizer(root)).spec.merges, spec.merges);
    const files: [string, unknown, string][] = [
      ["added_tokens.json", { "<a>": 1001 }, "without gaps"],
      ["added_tokens.json", { "<a>": 1000, "<b>": 1000 }, "one id a token"],
      ["added_tokens.json", { "cat</w>": 1000 }, "one id a token"],
      ["added_tokens.json", { "<a>": "1000" }, "<a>"],
      ["tokenizer_config.json", { model_max_length: "77" }, "model_max_length"],
      ["special_tokens_map.json", { bos_token: 1 }, "bos_token"],
      ["special_tokens_map.json", { bos_token: "<s>" }, "<s>"],
      ["vocab.json", ["a"], "vocab.json"],
      ["vocab.json", { a: 0.5 }, "vocab.json"],
    ];
    for (const [name, content, message] of files) {
      const old = await Deno.readFile(at(name)).catch(() => undefined);
      await writeJson(at(name), content);
      await assertRejects(() => loadTokenizer(root), Error, message);
      if (old) await Deno.writeFile(at(name), old);
      else await Deno.remove(at(name));
    }
    await loadTokenizer(root);
  }));

Deno.test("1,200 mutated tokenizer files: an error or a tokenizer that works", () =>
  inFolder(async (root) => {
    // Small, so that mutations hit what matters; every byte has its token.
    const names = [
      ...byteAlphabet().flatMap(([, char]) => [char, `${char}</w>`]),
      "ca",
      "cat</w>",
      "<|startoftext|>",
      "<|endoftext|>",
    ];
    const { spec } = createTokenizer({
      vocab: Object.fromEntries(names.map((name, id) => [name, id])),
      merges: ["c a", "ca t</w>"],
    });
    const at = (name: string) => joinPath(root, name);
    await createTokenizer(spec).withAddedTokens(["<new0>"]).save(root);
    const slow = [
      "vocab.json",
      "merges.txt",
      "tokenizer_config.json",
      "special_tokens_map.json",
      "added_tokens.json",
    ];
    const fast = await Deno.makeTempDir({ dir: root });
    const fastPath = joinPath(fast, "tokenizer.json");
    await writeJson(fastPath, {
      added_tokens: [{ id: names.length, content: "<new0>" }],
      model: {
        type: "BPE",
        end_of_word_suffix: "</w>",
        vocab: spec.vocab,
        merges: spec.merges,
      },
    });
    const targets: [folder: string, path: string, content: Uint8Array][] = [];
    for (const name of slow) {
      targets.push([root, at(name), await Deno.readFile(at(name))]);
    }
    targets.push([fast, fastPath, await Deno.readFile(fastPath)]);
    const words = [
      "{",
      "}",
      "[",
      '"',
      ":",
      ",",
      "0",
      "-1",
      "1e99",
      "null",
      "{}",
    ];

    const draw = stream(fold(key(20240301), "tokenizer fuzz"));
    let refused = 0;
    for (let i = 0; i < 1200; i++) {
      const [folder, path, content] = targets[i % targets.length];
      const bytes = content.slice();
      const kind = draw.integer(3);
      const where = draw.integer(bytes.length);
      if (kind === 0) {
        for (let n = 1 + draw.integer(3); n > 0; n--) {
          bytes[draw.integer(bytes.length)] = draw.integer(256);
        }
      } else if (kind === 2) {
        const word = words[draw.integer(words.length)];
        bytes.set(
          new TextEncoder().encode(word).slice(0, bytes.length - where),
          where,
        );
      }
      await Deno.writeFile(path, kind === 1 ? bytes.slice(0, where) : bytes);
      try {
        const tokenizer = await loadTokenizer(folder);
        const { ids } = tokenizer.encode("A cat <new0>, ß");
        assertEquals(ids.length, tokenizer.modelMaxLength);
        assert(ids.every((id) => id >= 0 && id < tokenizer.vocabSize));
        tokenizer.decode(ids);
      } catch (error) {
        assert(
          error instanceof Error && error.message.startsWith("Cannot "),
          `mutation ${i} of ${path}: ${(error as Error).stack}`,
        );
        refused++;
      }
      await Deno.writeFile(path, content);
    }
    assert(refused > 400 && refused < 1200, `${refused} refused`);
    await loadTokenizer(root);
    await loadTokenizer(fast);
  }));
