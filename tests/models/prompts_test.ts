import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { addTokens, releaseTokens } from "../../src/customize/concept.ts";
import { crossAttentionSites } from "../../src/models/config.ts";
import {
  bindPrompt,
  calledTokens,
  cutOff,
  disposeModel,
  type Model,
  promptStates,
} from "../../src/models/model.ts";
import {
  parseAttention,
  plainWords,
  promptChunks,
  readPrompts,
} from "../../src/models/prompts.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { tinySd } from "../customize/tiny_sd.ts";

/** Texts and weights; a break is ["BREAK", -1], as A1111 writes it. */
function parsed(prompt: string): [string, number][] {
  return parseAttention(prompt).map((part) =>
    "break" in part
      ? ["BREAK", -1]
      : [part.text, Math.round(part.weight * 1e6) / 1e6]
  );
}

// The values that A1111 documents for its parser, and its corner cases.
const parses: [prompt: string, expected: [string, number][]][] = [
  ["normal text", [["normal text", 1]]],
  ["an (important) word", [["an ", 1], ["important", 1.1], [" word", 1]]],
  ["(unbalanced", [["unbalanced", 1.1]]],
  ["\\(literal\\]", [["(literal]", 1]]],
  ["(unnecessary)(parens)", [["unnecessaryparens", 1.1]]],
  [
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
    [
      ["a ", 1],
      ["house", 1.573],
      [" ", 1.1],
      ["on", 1],
      [" a ", 1.1],
      ["hill", 0.55],
      [", sun, ", 1.1],
      ["sky", 1.4641],
      [".", 1.1],
    ],
  ],
  ["[[fox]]", [["fox", 0.826446]]],
  ["a:b", [["a:b", 1]]],
  ["(fox: 1.5 )", [["fox", 1.5]]],
  ["(fox:-0.5)", [["fox", -0.5]]],
  ["fox:1.5)", [["fox:1.5)", 1]]],
  ["a\\b \\\\", [["a\\b \\", 1]]],
  ["a BREAK b", [["a", 1], ["BREAK", -1], ["b", 1]]],
  ["BREAKFAST", [["BREAKFAST", 1]]],
  ["", []],
];

for (const [prompt, expected] of parses) {
  Deno.test(`weights of ${JSON.stringify(prompt)}`, () => {
    assertEquals(parsed(prompt), expected);
  });
}

Deno.test("the words of a prompt are left without its syntax", () => {
  assertEquals(
    plainWords("a (fox:1.5) [on] BREAK \\(grass\\)"),
    "a fox on (grass)",
  );
});

async function withModel(check: (model: Model) => Promise<void> | void) {
  await selectBackend("cpu");
  const model = await tinySd();
  try {
    await check(model);
  } finally {
    disposeModel(model);
  }
}

const numbers = (make: () => tf.Tensor): Float32Array => {
  const made = tf.tidy(make);
  const values = made.dataSync() as Float32Array;
  made.dispose();
  return values;
};

const read = (model: Model, prompt: string) =>
  numbers(() => readPrompts(model, [prompt], { syntax: "a1111" }));
const plain = (model: Model, prompt: string) =>
  numbers(() => promptStates(model, [prompt]));

function near(got: ArrayLike<number>, expected: ArrayLike<number>): void {
  assertEquals(got.length, expected.length);
  for (let i = 0; i < got.length; i++) {
    assert(
      Math.abs(got[i] - expected[i]) < 1e-5,
      `${i}: ${got[i]} ${expected[i]}`,
    );
  }
}

/** One chunk weighted by hand: numbers in loops, nothing of the library's. */
function weighted(
  states: Float32Array,
  width: number,
  weights: Readonly<Record<number, number>>,
): Float32Array {
  const mean = (list: Float32Array) =>
    list.reduce((sum, value) => sum + value, 0) / list.length;
  const out = states.slice();
  for (const [position, weight] of Object.entries(weights)) {
    for (let k = 0; k < width; k++) out[Number(position) * width + k] *= weight;
  }
  const back = mean(states) / mean(out);
  return out.map((value) => value * back);
}

Deno.test("a weight scales its tokens' states, and the mean stays", async () => {
  await withModel((model) => {
    const width = model.textEncoder.config.hidden_size;
    const words = plain(model, "a cat dog");
    const ids = model.tokenizer.tokenize("a cat dog");
    const before = model.tokenizer.tokenize("a").length;
    const cat = model.tokenizer.tokenize("cat").length;
    assertEquals(
      ids.length,
      before + cat + model.tokenizer.tokenize("dog").length,
    );
    const factors = (weight: number) =>
      Object.fromEntries(
        Array.from({ length: cat }, (_, i) => [1 + before + i, weight]),
      );
    for (
      const [prompt, weight] of [
        ["a (cat:1.5) dog", 1.5],
        ["a ((cat)) dog", 1.21],
        ["a [cat] dog", 1 / 1.1],
        ["a (cat:0.5) dog", 0.5],
      ] as const
    ) {
      near(read(model, prompt), weighted(words, width, factors(weight)));
    }
    // Without any of it the states are those of the plain prompt, bit for bit.
    assertEquals(read(model, "a cat dog"), words);
    assertEquals(read(model, "a \\(cat\\) dog"), plain(model, "a (cat) dog"));
  });
});

Deno.test("BREAK and long prompts are read in chunks one behind the other", async () => {
  await withModel((model) => {
    const both = (a: string, b: string) =>
      new Float32Array([...plain(model, a), ...plain(model, b)]);
    near(read(model, "a cat BREAK a dog"), both("a cat", "a dog"));
    const size = model.tokenizer.modelMaxLength - 2;
    assertEquals(model.tokenizer.tokenize("a").length, 1);
    const words = (n: number) => new Array(n).fill("a").join(" ");
    near(
      read(model, words(size + 3)),
      both(words(size), words(3)),
    );
    assertEquals(promptChunks(model, [words(size)], "a1111"), 1);
    assertEquals(promptChunks(model, [words(2 * size + 1)], "a1111"), 3);
    assertEquals(promptChunks(model, [words(2 * size + 1)], "plain"), 1);
    // A shorter prompt beside a longer one is filled up with nothing.
    const pair = numbers(() =>
      readPrompts(model, ["a", words(size + 1)], { syntax: "a1111" })
    );
    near(pair.slice(0, pair.length / 2), both("a", ""));
    // Cut off where they are plain.
    const cut = cutOff(model, words(size + 2))!;
    assertEquals([cut.limit, cut.tokens, cut.lost], [size, size + 2, "a a"]);
    assertEquals(cutOff(model, words(size)), undefined);
  });
});

Deno.test("a full chunk ends at its last comma", async () => {
  await withModel((model) => {
    assert(model.tokenizer.idOf(",</w>") !== undefined);
    const size = model.tokenizer.modelMaxLength - 2;
    const words = (n: number) => new Array(n).fill("a").join(" ");
    // The comma is the third to last token of the chunk.
    const prompt = `${words(size - 3)}, ${words(4)}`;
    near(
      read(model, prompt),
      new Float32Array([
        ...plain(model, `${words(size - 3)},`),
        ...plain(model, words(4)),
      ]),
    );
  });
});

Deno.test("an embedding's name stands for all its vectors, in any case", async () => {
  await withModel((model) => {
    const width = model.textEncoder.config.hidden_size;
    const sites = crossAttentionSites(model.unet.config).length;
    const token = (name: string, rows: number, value: number) => ({
      token: name,
      vectors: tf.fill([rows, width], value) as tf.Tensor2D,
    });
    const tokens = [
      token("nasty", 1, 0.1),
      token("nasty_1", 1, 0.2),
      token("nasty_2", 1, 0.3),
      token("<Deep>", sites, 0.4),
      token("<Deep>_1", sites, 0.5),
      token("<DEEP>", 1, 0.6),
    ];
    const full = addTokens(model, [{ tokens }]);
    try {
      const base = full.tokenizer.vocabSize - full.added!.names.length;
      const ids = (prompt: string, site = 0) => {
        const { rows, site: of } = bindPrompt(full, prompt);
        return rows[of[site]].filter((id) => id >= base).map((id) => id - base);
      };
      assertEquals(ids("a nasty cat"), [0, 1, 2]);
      assertEquals(ids("NASTY, cat"), [0, 1, 2]);
      assertEquals(ids("nasty nasty_1 nasty_2"), [0, 1, 2]);
      assertEquals(ids("nasty_2"), [2]);
      // Not inside another word.
      assertEquals(ids("nastyness dynasty"), []);
      // One vector per layer, two tokens.
      assertEquals(ids("<Deep>"), [3, 3 + sites]);
      assertEquals(ids("<Deep>", 1), [4, 4 + sites]);
      assertEquals(ids("<DEEP>"), [3 + 2 * sites]);
      assertThrows(() => ids("<deep>"), Error, "<Deep> or <DEEP>, written so");
      assertEquals(
        calledTokens(full.added, "x Nasty y"),
        ["x ", { tokens: ["nasty", "nasty_1", "nasty_2"] }, " y"],
      );
      // Weighted, all vectors are.
      const states = (prompt: string) =>
        numbers(() => readPrompts(full, [prompt], { syntax: "a1111" }));
      near(
        states("(nasty:1.4)"),
        weighted(plain(full, "nasty"), width, { 1: 1.4, 2: 1.4, 3: 1.4 }),
      );
      // Layer-wise: the same per site.
      const one = plain(full, "<Deep>");
      const each = one.length / sites;
      near(
        states("(<Deep>:1.4)"),
        new Float32Array(
          Array.from({ length: sites }, (_, i) => [
            ...weighted(one.slice(i * each, (i + 1) * each), width, {
              1: 1.4,
              2: 1.4,
            }),
          ]).flat(),
        ),
      );
    } finally {
      releaseTokens(full, model);
      tf.dispose(tokens.map(({ vectors }) => vectors));
    }
  });
});
