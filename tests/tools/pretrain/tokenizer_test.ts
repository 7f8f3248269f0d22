import { assert, assertEquals, assertThrows } from "@std/assert";
import { loadTokenizer } from "../../../src/models/tokenizer.ts";
import { buildTokenizer } from "./tokenizer.ts";

// Prefixes, shared middles and repeats: each would break a plain prefix chain.
const WORDS = (
  "a an cat scar scatter cocoa coco banana nana ananas photo of background " +
  "ground back mississippi miss is ss sss aaaa aaa aa on no noon , . 3 ! the"
).split(" ");

Deno.test("each word is one token, and decodes to itself", () => {
  const tokenizer = buildTokenizer(WORDS, 24);
  for (const word of WORDS) {
    assertEquals(tokenizer.tokenize(word), [tokenizer.idOf(`${word}</w>`)]);
  }
  const text = "a photo of the scar , 3 cat";
  assertEquals(tokenizer.tokenize(text).length, 8);
  assertEquals(tokenizer.decode(tokenizer.encode(text).ids), text);
});

Deno.test("laid out as CLIP's vocabulary, start and end last", () => {
  const tokenizer = buildTokenizer(WORDS, 24);
  assertEquals(tokenizer.idOf("!"), 0);
  assertEquals(tokenizer.idOf("!</w>"), 256);
  assertEquals(tokenizer.bosId, tokenizer.vocabSize - 2);
  assertEquals(tokenizer.eosId, tokenizer.vocabSize - 1);
  assertEquals(tokenizer.padId, tokenizer.eosId);
  const { ids, truncated } = tokenizer.encode("cat");
  assertEquals(truncated, 0);
  assertEquals(ids.length, 24);
  assertEquals(ids.slice(2), Array(22).fill(tokenizer.eosId));
});

Deno.test("any other text has ids too, byte by byte where need be", () => {
  const tokenizer = buildTokenizer(WORDS, 24);
  const end = tokenizer.eosId;
  for (const text of ["zqx", "catz", "日本", "🦊", "x9y", "ß", "\\ ~ |"]) {
    const ids = tokenizer.tokenize(text);
    assert(ids.length > 0 && !ids.includes(end), text);
    assertEquals(
      tokenizer.decode(ids).replaceAll(" ", ""),
      text.replaceAll(" ", ""),
    );
  }
});

Deno.test("deterministic, without regard to duplicates, and it saves", async () => {
  const tokenizer = buildTokenizer(WORDS, 24);
  assertEquals(
    buildTokenizer([...WORDS, ...WORDS], 24).spec,
    tokenizer.spec,
  );
  const root = await Deno.makeTempDir();
  await tokenizer.save(root);
  assertEquals((await loadTokenizer(root)).spec, tokenizer.spec);
  await Deno.remove(root, { recursive: true });
});

Deno.test("what is not one lower-case word is refused", () => {
  for (
    const word of ["t-shirt", "Cat", "two words", "", "42", "é", "a\u0301"]
  ) {
    assertThrows(
      () => buildTokenizer(["cat", word], 24),
      Error,
      JSON.stringify(word),
    );
  }
  assertThrows(() => buildTokenizer(["cat"], 1), Error, "at least 2");
});
