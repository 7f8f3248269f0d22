/** One drawable thing of the embedded world. */
export interface Noun {
  /** The word, one token. */
  readonly word: string;
  /** Its coarse class, also a word of the world. */
  readonly class: string;
  /** Unicode code point of the art, lower-case hexadecimal. */
  readonly codepoint: string;
}

/** Where a design's drawings come from. */
export interface Design {
  /** The style word, one token. */
  readonly word: string;
  /** The pinned npm package of the drawings. */
  readonly package: string;
  /** The package's version. */
  readonly version: string;
  /** SPDX identifier of the drawings' licence. */
  readonly license: string;
  /** Who drew them: designs of one hand share their outlines. */
  readonly hand: "noto" | "fluent" | "noto-v1" | "fxemoji";
}

/** A hue that objects can be tinted with. */
export interface Color {
  /** The colour word. */
  readonly word: string;
  /** sRGB, 0–255. */
  readonly rgb: readonly [number, number, number];
}

/** A procedural background and the phrases that name it. */
export interface Background {
  /** The noun of the background, the word that prompts use. */
  readonly word: string;
  /** Phrases that place something there; the first is the usual one. */
  readonly phrases: readonly [string, ...string[]];
}

/** A family of scenes: what can be in them and how often. */
export interface World {
  /** Root seed of every scene drawn from this world. */
  readonly seed: number;
  /** Side of the square images in pixels. */
  readonly side: number;
  /** What objects can be. */
  readonly nouns: readonly Noun[];
  /** How they can be drawn. */
  readonly designs: readonly Design[];
  /** Where they can be. */
  readonly backgrounds: readonly Background[];
  /** How they can be tinted. */
  readonly colors: readonly Color[];
  /** Share of scenes with two objects. */
  readonly pairs: number;
  /** Share of objects that are tinted. */
  readonly tinted: number;
  /** Whether half of all objects are mirror images. */
  readonly mirrored: boolean;
  /**
   * Objects' edges lie on multiples of it, in pixels. On the grid of the
   * autoencoder's latents (4) a drawing has one latent wherever it stands.
   */
  readonly grid: number;
  /** Longest side in pixels, lowest and highest, of each size word and of objects without one (`""`) and of a pair's objects. */
  readonly sizes: {
    readonly small: readonly [number, number];
    readonly "": readonly [number, number];
    readonly big: readonly [number, number];
    readonly pair: readonly [number, number];
  };
}

/** Where an object can be; `center` is the middle of the image. */
export const PLACES = ["left", "right", "top", "bottom", "center"] as const;

/** The coarse classes, each a word that can stand for its nouns. */
export const CLASSES = [
  "person",
  "monster",
  "animal",
  "bird",
  "vehicle",
  "food",
  "plant",
  "object",
] as const;

const noun = (word: string, cls: string, codepoint: string): Noun => ({
  word,
  class: cls,
  codepoint,
});

/** The nouns of the base world: three in each coarse class. */
export const NOUNS: readonly Noun[] = [
  noun("girl", "person", "1f467"),
  noun("grandpa", "person", "1f474"),
  noun("santa", "person", "1f385"),
  noun("ghost", "monster", "1f47b"),
  noun("alien", "monster", "1f47d"),
  noun("robot", "monster", "1f916"),
  noun("fox", "animal", "1f98a"),
  noun("frog", "animal", "1f438"),
  noun("pig", "animal", "1f437"),
  noun("duck", "bird", "1f986"),
  noun("owl", "bird", "1f989"),
  noun("chicken", "bird", "1f414"),
  noun("car", "vehicle", "1f697"),
  noun("rocket", "vehicle", "1f680"),
  noun("boat", "vehicle", "26f5"),
  noun("apple", "food", "1f34e"),
  noun("banana", "food", "1f34c"),
  noun("burger", "food", "1f354"),
  noun("cactus", "plant", "1f335"),
  noun("mushroom", "plant", "1f344"),
  noun("sunflower", "plant", "1f33b"),
  noun("umbrella", "object", "2614"),
  noun("crown", "object", "1f451"),
  noun("clock", "object", "23f0"),
];

/** More nouns, which only the evaluation CLIP sees. */
export const WIDE_NOUNS: readonly Noun[] = [
  noun("man", "person", "1f468"),
  noun("baby", "person", "1f476"),
  noun("snowman", "monster", "2603"),
  noun("pumpkin", "monster", "1f383"),
  noun("cow", "animal", "1f42e"),
  noun("cat", "animal", "1f431"),
  noun("fish", "animal", "1f41f"),
  noun("eagle", "bird", "1f985"),
  noun("bus", "vehicle", "1f68c"),
  noun("train", "vehicle", "1f682"),
  noun("pizza", "food", "1f355"),
  noun("donut", "food", "1f369"),
  noun("tree", "plant", "1f333"),
  noun("tulip", "plant", "1f337"),
  noun("guitar", "object", "1f3b8"),
  noun("balloon", "object", "1f388"),
];

/** Every design in the atlas; the base world uses the first two. */
export const DESIGNS: readonly Design[] = [
  {
    word: "cartoon",
    package: "@iconify-json/noto",
    version: "1.2.9",
    license: "Apache-2.0",
    hand: "noto",
  },
  {
    word: "glossy",
    package: "@iconify-json/fluent-emoji",
    version: "1.2.7",
    license: "MIT",
    hand: "fluent",
  },
  {
    word: "flat",
    package: "@iconify-json/fluent-emoji-flat",
    version: "1.2.6",
    license: "MIT",
    hand: "fluent",
  },
  {
    word: "retro",
    package: "@iconify-json/noto-v1",
    version: "1.2.5",
    license: "Apache-2.0",
    hand: "noto-v1",
  },
  {
    word: "plain",
    package: "@iconify-json/fxemoji",
    version: "1.2.2",
    license: "Apache-2.0",
    hand: "fxemoji",
  },
];

/** The procedural backgrounds. */
export const BACKGROUNDS: readonly Background[] = [
  { word: "grass", phrases: ["on grass", "on the grass"] },
  { word: "sand", phrases: ["on sand", "on the sand"] },
  { word: "snow", phrases: ["in snow", "in the snow"] },
  { word: "night", phrases: ["at night"] },
  { word: "sea", phrases: ["at sea", "in the sea"] },
  { word: "brick", phrases: ["on brick", "by a brick wall"] },
  { word: "wood", phrases: ["on wood"] },
  { word: "forest", phrases: ["in a forest", "in the forest"] },
  { word: "city", phrases: ["in a city", "in the city"] },
  { word: "sunset", phrases: ["at sunset"] },
];

/** The tints. */
export const COLORS: readonly Color[] = [
  { word: "red", rgb: [226, 30, 34] },
  { word: "yellow", rgb: [250, 212, 22] },
  { word: "green", rgb: [34, 172, 56] },
  { word: "blue", rgb: [30, 90, 236] },
  { word: "purple", rgb: [140, 44, 190] },
  { word: "pink", rgb: [255, 130, 190] },
];

/** The world that the base model is trained on. */
export const WORLD: World = {
  seed: 20231,
  side: 64,
  nouns: NOUNS,
  designs: DESIGNS.slice(0, 2),
  backgrounds: BACKGROUNDS,
  colors: COLORS,
  pairs: 0.3,
  tinted: 0.35,
  mirrored: false,
  grid: 4,
  sizes: { small: [28, 28], "": [40, 40], big: [52, 52], pair: [32, 32] },
};

/**
 * The wider world of the evaluation CLIP: more nouns, every design, mirror
 * images, any position and size.
 */
export const WIDE_WORLD: World = {
  ...WORLD,
  seed: 20232,
  mirrored: true,
  grid: 1,
  sizes: { small: [27, 31], "": [36, 42], big: [46, 52], pair: [28, 32] },
  nouns: [...NOUNS, ...WIDE_NOUNS],
  designs: DESIGNS,
};

/** A named character or thing that a concept is trained on. */
export interface Identity {
  /** Made-up proper name, known to the evaluation CLIP only. */
  readonly name: string;
  /** The class word: what prompts say instead on an untouched model. */
  readonly class: string;
  /** Code point of the animated art, lower-case hexadecimal. */
  readonly codepoint: string;
  /** Test identities are scored; settings are chosen on development ones. */
  readonly split: "test" | "development";
}

const identity = (
  name: string,
  cls: string,
  codepoint: string,
  split: "test" | "development" = "test",
): Identity => ({ name, class: cls, codepoint, split });

/** The sixteen identities. */
export const IDENTITIES: readonly Identity[] = [
  identity("kuro", "person", "1f977"), // ninja
  identity("lila", "person", "1f478"), // princess
  identity("bram", "person", "1f482"), // guard
  identity("zeno", "person", "1f9d9"), // mage
  identity("momo", "animal", "1f43c"), // panda
  identity("raja", "animal", "1f42f"), // tiger
  identity("pip", "animal", "1f430"), // rabbit
  identity("kiki", "bird", "1f99c"), // parrot
  identity("pogo", "bird", "1f427"), // penguin
  identity("aero", "vehicle", "2708"), // airplane
  identity("zorp", "vehicle", "1f6f8"), // flying saucer
  identity("whir", "vehicle", "1f681"), // helicopter
  identity("jin", "person", "1f9de", "development"), // genie
  identity("bobo", "animal", "1f43b", "development"), // bear
  identity("fifi", "bird", "1f9a9", "development"), // flamingo
  identity("dash", "vehicle", "1f693", "development"), // police car
];
