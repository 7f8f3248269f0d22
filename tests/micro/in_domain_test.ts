import { assert, assertEquals, assertThrows } from "@std/assert";
import { fillToken, identityOf } from "../../src/micro/concepts.ts";
import {
  boxMask,
  conceptOf,
  drawings,
  DRAWN_IMAGES,
  IN_DOMAIN,
  promptsOf,
} from "../../src/micro/in_domain.ts";
import { loadPrompts, promptText } from "../../src/micro/prompts.ts";
import {
  BACKGROUNDS,
  DESIGNS,
  IDENTITIES,
  WIDE_NOUNS,
  WORLD,
} from "../../src/micro/world.ts";
import { worldWords } from "../tools/pretrain/tokenizer.ts";

const all = await loadPrompts();

Deno.test("in-domain concepts have a class word, a look and a twin's prompts", () => {
  assert(IN_DOMAIN.length >= 3);
  const words = new Set(worldWords());
  for (const { name, class: word, look, twin } of IN_DOMAIN) {
    assert(!words.has(name), `${name} is a word already`);
    assertEquals(identityOf(twin).class, word);
    assertEquals(identityOf(twin).split, "test");
    assertEquals(conceptOf(name).class, word);
    const { prompts } = promptsOf(name, all);
    assertEquals(prompts.length, 20);
    const [color, , noun] = look.split(" ");
    for (const prompt of prompts) {
      const asked = promptText(prompt, word).split(" ");
      assert(!asked.includes(color) && !asked.includes(noun), prompt.text);
    }
  }
  assertEquals(promptsOf("momo", all).concept, "momo");
  assertThrows(() => conceptOf("nobody"), Error, "whir, jin");
  assertThrows(() => promptsOf("nobody", all), Error, "prompts of nobody");
});

Deno.test("what the base draws of them: its words, all backgrounds, own noise", () => {
  const known = new Set(worldWords());
  for (const { word } of [...WIDE_NOUNS, ...DESIGNS.slice(2)]) {
    known.delete(word);
  }
  for (const { name } of IDENTITIES) known.delete(name);
  const noises = new Set<string>();
  let count = 0;
  for (const { name, look, others } of IN_DOMAIN) {
    const sets = [
      drawings(name, "train"),
      drawings(name, "reference"),
      ...others.map((other) => drawings(name, "other", other)),
    ];
    const prompts = new Set(
      promptsOf(name, all).prompts.map(({ text }) => text),
    );
    for (const [i, set] of sets.entries()) {
      for (const { text, caption, noise, box } of set) {
        noises.add(JSON.stringify(noise));
        count++;
        for (const word of text.split(" ")) assert(known.has(word), text);
        assert(text.split(" ").length <= 16, text);
        assert(!prompts.has(caption), caption);
        if (i < 2) assertEquals(text, fillToken(caption, look));
        assert(box.x >= 0 && box.x + box.width <= WORLD.side);
        assert(box.y >= 0 && box.y + box.height <= WORLD.side);
      }
    }
    const [train, reference] = sets;
    assertEquals(train.length, DRAWN_IMAGES.train);
    for (const { phrases: [phrase] } of BACKGROUNDS) {
      const times = (set: typeof train) =>
        set.filter(({ text }) => text.endsWith(phrase)).length;
      assert(times(train) >= 1);
      assertEquals(times(reference), 2);
    }
    assertEquals(drawings(name, "train"), train);
  }
  assertEquals(noises.size, count);
  assertThrows(() => drawings("momo", "train"), Error, "niko");
});

Deno.test("a box is a mask of its area", () => {
  const mask = boxMask({ x: 2, y: 1, width: 3, height: 4 }, 8);
  assertEquals(mask.reduce((a, b) => a + b, 0), 12);
  assertEquals([mask[8 + 2], mask[8 + 5], mask[2]], [1, 0, 0]);
});
