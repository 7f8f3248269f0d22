import { assert, assertEquals, assertRejects } from "@std/assert";
import { conceptImages, loadConceptArt } from "../../src/micro/concepts.ts";
import {
  hashPrompts,
  loadPrompts,
  PROMPT_GROUPS,
  PROMPTS_SHA256,
  promptText,
} from "../../src/micro/prompts.ts";
import {
  DESIGNS,
  IDENTITIES,
  NOUNS,
  WIDE_NOUNS,
  WORLD,
} from "../../src/micro/world.ts";
import { classTexts } from "../tools/pretrain/shards.ts";
import { worldWords } from "../tools/pretrain/tokenizer.ts";

const prompts = await loadPrompts();

Deno.test("prompts are the ones that were fixed", async () => {
  assertEquals(await hashPrompts(prompts), PROMPTS_SHA256);
  const changed = prompts.map((entry, i) => ({
    ...entry,
    prompts: entry.prompts.map((prompt, k) => ({
      ...prompt,
      text: i === 3 && k === 7 ? `${prompt.text} at night` : prompt.text,
    })),
  }));
  const file = await Deno.makeTempFile({ suffix: ".json" });
  await Deno.writeTextFile(file, JSON.stringify(changed));
  await assertRejects(
    () => loadPrompts(new URL(`file://${file}`)),
    Error,
    "Cannot load prompts",
  );
  // White space does not count.
  await Deno.writeTextFile(file, JSON.stringify(prompts, null, 7));
  assertEquals(await loadPrompts(new URL(`file://${file}`)), prompts);
  await Deno.remove(file);
});

Deno.test("every identity has twenty prompts, five a group", () => {
  assertEquals(
    prompts.map(({ concept, class: cls, split }) => [concept, cls, split]),
    IDENTITIES.map(({ name, class: cls, split }) => [name, cls, split]),
  );
  for (const entry of prompts) {
    assertEquals(
      entry.prompts.map((prompt) => prompt.group),
      PROMPT_GROUPS.flatMap((group) => Array(5).fill(group)),
    );
    const texts = entry.prompts.map((prompt) => prompt.text);
    assertEquals(new Set(texts).size, 20);
    for (const text of texts) {
      assertEquals(text.split("<TOKEN>").length, 2, text);
    }
  }
});

Deno.test("prompts keep to words that the base model was taught", () => {
  const base = new Set(worldWords());
  for (const { word } of [...WIDE_NOUNS, ...DESIGNS.slice(2)]) {
    base.delete(word);
  }
  for (const { name } of IDENTITIES) base.delete(name);
  for (const entry of prompts) {
    for (const prompt of entry.prompts) {
      const text = promptText(prompt, entry.class);
      const words = text.split(" ");
      assert(words.length <= 16, text);
      for (const word of words) assert(base.has(word), `${word} in: ${text}`);
      assert(!/\ba [aeiou]|\ban [^aeiou]/.test(text), text);
    }
  }
});

Deno.test("facts say what the text asks for, and the group holds", () => {
  for (const entry of prompts) {
    for (const { group, text, facts } of entry.prompts) {
      const words = text.split(" ");
      for (
        const fact of ["background", "style", "color", "size", "place"] as const
      ) {
        if (facts[fact]) {
          assert(words.includes(facts[fact]), `${fact}: ${text}`);
        }
      }
      for (const { word } of WORLD.backgrounds) {
        assertEquals(words.includes(word), facts.background === word, text);
      }
      for (const { word } of WORLD.colors) {
        assertEquals(words.includes(word), facts.color === word, text);
      }
      for (const { word } of NOUNS) {
        assertEquals(words.includes(word), facts.partner === word, text);
      }
      if (facts.partner) {
        const first = text.indexOf("<TOKEN>") < text.indexOf(facts.partner);
        const left = text.includes("to the right of") ? !first : first;
        assertEquals(facts.side, left ? "left" : "right", text);
      }
      if (group === "recontextualisation") {
        assertEquals(Object.keys(facts), ["background"], text);
      } else if (group === "restylisation") assert(facts.style, text);
      else if (group === "interaction") assert(facts.partner, text);
      else assert(facts.color || facts.size || facts.place, text);
    }
  }
});

Deno.test("development and test prompts have no text in common", () => {
  const texts = (split: string): Set<string> =>
    new Set(
      prompts.filter((entry) => entry.split === split)
        .flatMap((entry) => entry.prompts.map((prompt) => prompt.text)),
    );
  const test = texts("test"), development = texts("development");
  assertEquals([...test].filter((text) => development.has(text)), []);
});

Deno.test("no prompt of a concept is a caption it is trained on", async () => {
  const art = await loadConceptArt();
  for (const entry of prompts) {
    const captions = new Set(
      conceptImages(entry.concept, "train", art).map((image) => image.caption),
    );
    for (const { text } of entry.prompts) assert(!captions.has(text), text);
  }
});

Deno.test("class texts are every prompt on an untouched model", () => {
  const texts = classTexts(prompts);
  assert(texts.has(promptText(prompts[4].prompts[0], "animal")));
  assert(![...texts].some((text) => text.includes("<TOKEN>")));
});
