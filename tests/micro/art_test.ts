import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import {
  type Art,
  ART_FOLDER,
  type AtlasIndex,
  loadArt,
  readArtJson,
  scaledSprite,
  spriteKey,
} from "../../src/micro/art.ts";
import {
  CLASSES,
  DESIGNS,
  IDENTITIES,
  NOUNS,
  WIDE_WORLD,
  WORLD,
} from "../../src/micro/world.ts";

const art = await loadArt();
const atlas = await readArtJson<AtlasIndex>("atlas.json", ART_FOLDER);

Deno.test("the base world has every noun in both its designs", () => {
  assertEquals(WORLD.nouns.length, 24);
  assertEquals(new Set(WORLD.nouns.map((noun) => noun.class)).size, 8);
  for (const noun of WORLD.nouns) {
    for (const design of WORLD.designs) {
      const sprite = art.sprites.get(spriteKey(noun.word, design.word));
      assert(sprite, `${noun.word}/${design.word}`);
      // Fitted: the longest side touches both edges of its cell.
      const opaque = sprite.data.filter((_, i) => i % 4 === 3)
        .reduce((n, alpha) => n + (alpha > 127 ? 1 : 0), 0);
      assert(opaque > 0.15 * 48 * 48, `${noun.word} is almost empty`);
    }
  }
  // Wider nouns may lack some designs, but never all but one.
  for (const noun of WIDE_WORLD.nouns) {
    const n = DESIGNS.filter((design) =>
      art.sprites.has(spriteKey(noun.word, design.word))
    );
    assert(n.length >= 2, noun.word);
    assert((CLASSES as readonly string[]).includes(noun.class));
  }
});

Deno.test("no two sprites are the same drawing", () => {
  const seen = new Set<string>();
  for (const [key, sprite] of art.sprites) {
    const text = sprite.data.join();
    assert(!seen.has(text), key);
    seen.add(text);
  }
});

/** First code point: shared by all gender and skin variants of an emoji. */
const family = (codepoint: string): string => codepoint.split("-")[0];

Deno.test("no identity's code point family is in any training art", () => {
  const kept = new Set(
    IDENTITIES.map((identity) => family(identity.codepoint)),
  );
  assertEquals(kept.size, 16);
  for (const sprite of atlas.sprites) {
    assert(!kept.has(family(sprite.codepoint)), sprite.noun);
    // The sprite's icon is what its code point says in no identity's name.
    assert(!atlas.others.some((other) => other.icon === sprite.icon));
  }
  for (const noun of WIDE_WORLD.nouns) {
    assert(!kept.has(family(noun.codepoint)), noun.word);
  }
  // loadArt, the only art that base training reads, has no identity at all.
  for (const { name } of IDENTITIES) {
    assert(![...art.sprites.keys()].some((key) => key.startsWith(`${name}/`)));
  }
});

Deno.test("every sprite is credited to a pinned package", async () => {
  const credits = await readArtJson<
    { package: string; version: string; license: string; icons: string[] }[]
  >("credits.json", ART_FOLDER);
  const notice = await Deno.readTextFile(
    new URL("../../NOTICE", import.meta.url),
  );
  for (const sprite of [...atlas.sprites, ...atlas.others]) {
    const design = DESIGNS.find((entry) => entry.word === sprite.design)!;
    const entry = credits.find((entry) => entry.package === design.package)!;
    assertEquals(entry.version, design.version);
    assert(entry.icons.includes(sprite.icon), sprite.icon);
    assert(notice.includes(`${entry.package} ${entry.version}`));
    assert(["MIT", "Apache-2.0"].includes(entry.license));
  }
});

Deno.test("scaling averages areas: it keeps the mean and the full size", () => {
  const key = spriteKey("fox", "glossy");
  const sprite = art.sprites.get(key)!;
  const same = scaledSprite(art, key, sprite.side);
  for (let i = 0; i < same.length; i += 4) {
    const alpha = sprite.data[i + 3] / 255;
    assertAlmostEquals(same[i + 3], alpha, 1e-6);
    assertAlmostEquals(same[i], sprite.data[i] * alpha, 1e-4);
  }
  const mean = (values: Float32Array, channel: number): number => {
    let sum = 0;
    for (let i = channel; i < values.length; i += 4) sum += values[i];
    return sum / (values.length / 4);
  };
  for (const size of [24, 31, 46]) {
    const scaled = scaledSprite(art, key, size);
    for (let c = 0; c < 4; c++) {
      assertAlmostEquals(mean(scaled, c), mean(same, c), 1e-3);
    }
  }
});

Deno.test("a sprite that is not there is an error", () => {
  const empty: Art = { sprites: new Map(), scaled: new Map() };
  assertThrows(
    () => scaledSprite(empty, "fox/flat", 30),
    Error,
    "Cannot draw a sprite",
  );
});

Deno.test("nouns are distinct words and code points", () => {
  const nouns = WIDE_WORLD.nouns;
  assertEquals(new Set(nouns.map((noun) => noun.word)).size, nouns.length);
  assertEquals(new Set(nouns.map((noun) => noun.codepoint)).size, nouns.length);
  assertEquals(nouns.slice(0, NOUNS.length), NOUNS);
});
