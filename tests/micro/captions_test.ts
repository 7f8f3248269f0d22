import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, stream } from "../../src/core/random.ts";
import {
  captionOf,
  captionScene,
  placePhrase,
  withArticle,
} from "../../src/micro/captions.ts";
import { type Scene, trainScene } from "../../src/micro/scenes.ts";
import {
  BACKGROUNDS,
  CLASSES,
  COLORS,
  DESIGNS,
  IDENTITIES,
  NOUNS,
  WIDE_NOUNS,
  WORLD,
} from "../../src/micro/world.ts";
import { worldWords } from "../tools/pretrain/tokenizer.ts";

const words = (caption: string): string[] => caption.split(" ");

Deno.test("captions are short, lower-case and of the world's words only", () => {
  const known = new Set(worldWords());
  assert(known.size <= 120, `${known.size} words`);
  assertEquals(known.size, worldWords().length);
  for (let i = 0; i < 20_000; i++) {
    const caption = captionOf(trainScene(i), i);
    // 16 and a second token for each of two concepts stay below 22.
    assert(words(caption).length <= 16, caption);
    for (const word of words(caption)) assert(known.has(word), caption);
  }
});

Deno.test("captions say nothing untrue", () => {
  const has = (caption: string, word: string): boolean =>
    words(caption).includes(word);
  for (let i = 0; i < 5000; i++) {
    const scene = trainScene(i), caption = captionOf(scene, i, i % 3);
    const { objects } = scene;
    for (const { word } of COLORS) {
      const said = words(caption).filter((said) => said === word).length;
      const true_ = objects.filter((object) => object.color === word).length;
      // Every tint is said, as often as it is there.
      assertEquals(said, true_, `${caption}: ${word}`);
    }
    for (const { word } of DESIGNS) {
      if (has(caption, word)) {
        assert(objects.some((object) => object.design === word), caption);
      }
    }
    for (const { word } of NOUNS) {
      if (has(caption, word)) {
        assert(objects.some((object) => object.noun === word), caption);
      }
    }
    for (const word of CLASSES) {
      if (has(caption, word)) {
        assert(objects.some((object) => object.class === word), caption);
      }
    }
    for (const { word } of BACKGROUNDS) {
      if (has(caption, word)) assertEquals(scene.background, word, caption);
    }
    for (const size of ["small", "big"]) {
      if (has(caption, size)) assertEquals(objects[0].size, size, caption);
    }
    if (objects.length === 1) {
      for (const place of ["left", "right", "top", "bottom", "center"]) {
        if (has(caption, place)) assertEquals(objects[0].place, place);
      }
    }
  }
});

Deno.test("two objects: the words' order and places match the halves", () => {
  const scene: Scene = {
    ...trainScene(0),
    objects: [
      { ...trainScene(0).objects[0], noun: "fox", color: null, size: null },
      { ...trainScene(0).objects[0], noun: "car", color: null, size: null },
    ],
  };
  const forms = new Set<string>();
  for (let j = 0; j < 500; j++) {
    const caption = captionScene(scene, stream(key(j)), {
      classShare: 0,
      styleShare: 0,
    });
    const foxFirst = caption.indexOf("fox") < caption.indexOf("car");
    if (caption.includes("to the left of")) assert(foxFirst, caption);
    else if (caption.includes("to the right of")) assert(!foxFirst, caption);
    else if (caption.includes("on the left")) {
      assert(/fox on the left/.test(caption), caption);
      assert(/car on the right/.test(caption), caption);
    } else assert(foxFirst, caption);
    forms.add(caption);
  }
  assert(forms.size > 20);
});

Deno.test("class words stand for nouns in about a seventh of captions", () => {
  let said = 0, single = 0;
  for (let i = 0; i < 6000; i++) {
    const scene = trainScene(i);
    if (scene.objects.length === 2) continue;
    single++;
    if (words(captionOf(scene, i)).includes(scene.objects[0].class)) said++;
  }
  // Four standard deviations of a share of about 4,200 are .022.
  assert(Math.abs(said / single - 0.15) < 0.022, `${said} of ${single}`);
});

Deno.test("every noun meets adjectives and goes without", () => {
  const before = new Map<string, Set<string>>();
  for (let i = 0; i < 6000; i++) {
    const said = words(captionOf(trainScene(i), i));
    said.forEach((word, k) => {
      if (!NOUNS.some((noun) => noun.word === word)) return;
      if (!before.has(word)) before.set(word, new Set());
      before.get(word)!.add(said[k - 1]);
    });
  }
  for (const { word } of NOUNS) {
    for (const adjective of ["red", "small", "cartoon", "glossy"]) {
      assert(before.get(word)!.has(adjective), `${adjective} ${word}`);
    }
    assert(before.get(word)!.has(/^[aeiou]/.test(word) ? "an" : "a"), word);
  }
});

Deno.test("names take the noun's place, exclusions are kept out", () => {
  const scene = trainScene(3);
  for (let j = 0; j < 50; j++) {
    const names = scene.objects.map(() => "<TOKEN>");
    const caption = captionScene(scene, stream(key(j)), { names });
    assertEquals(
      caption.split("<TOKEN>").length - 1,
      scene.objects.length,
      caption,
    );
  }
  const common = captionOf(scene, 0);
  for (let j = 0; j < 50; j++) {
    const exclude = new Set([common]);
    assert(captionScene(scene, stream(key(j)), { exclude }) !== common);
  }
  assertThrows(
    () => captionOf({ ...scene, background: "moon" }, 0, 1),
    Error,
    "Cannot name a background",
  );
});

Deno.test("articles and places read as English", () => {
  assertEquals(withArticle("owl"), "an owl");
  assertEquals(withArticle("red owl"), "a red owl");
  assertEquals(placePhrase("left"), "on the left");
  assertEquals(placePhrase("top"), "at the top");
  assertEquals(placePhrase("center"), "in the center");
});

Deno.test("the word list covers nouns, styles, classes and proper names", () => {
  const known = new Set(worldWords());
  for (const { word } of [...NOUNS, ...WIDE_NOUNS, ...DESIGNS]) {
    assert(known.has(word), word);
  }
  for (const { name } of IDENTITIES) assert(known.has(name));
  assert(WORLD.designs.length === 2);
});
