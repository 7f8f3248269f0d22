import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { scaledSprite } from "../../src/micro/art.ts";
import {
  conceptImage,
  conceptImages,
  fillToken,
  type FrameSet,
  identityOf,
  loadConceptArt,
  loadFrameIndex,
  otherDesignImage,
  otherDesigns,
  PLACEHOLDER,
  REFERENCE_IMAGES,
  TRAIN_IMAGES,
} from "../../src/micro/concepts.ts";
import { IDENTITIES, NOUNS, WORLD } from "../../src/micro/world.ts";

const art = await loadConceptArt();
const frames = await loadFrameIndex();
const SETS: FrameSet[] = ["train", "reference", "clip"];

Deno.test("twelve test and four development identities share class words", () => {
  const test = IDENTITIES.filter((identity) => identity.split === "test");
  assertEquals(test.length, 12);
  assertEquals(IDENTITIES.length, 16);
  const count = (cls: string): number =>
    test.filter((identity) => identity.class === cls).length;
  assert(count("person") >= 4);
  assert(count("animal") + count("bird") >= 3);
  assert(count("vehicle") + count("object") >= 3);
  for (const identity of IDENTITIES) {
    // The class word stays known through other art.
    assert(NOUNS.filter((n) => n.class === identity.class).length >= 3);
    assert(!NOUNS.some((noun) => noun.word === identity.name));
  }
});

Deno.test("the three blocks of an animation share no frame, nor a look", () => {
  for (const { name, sets, distance } of frames.identities) {
    const numbers = SETS.flatMap((set) => [...sets[set]]);
    assertEquals(new Set(numbers).size, numbers.length, name);
    for (const set of SETS) assert(sets[set].length >= 8, name);
    // Recomputed from the committed atlas: root mean square over mid grey.
    const cells = SETS.map((set) =>
      sets[set].map((_, i) => {
        const cell = scaledSprite(art, `${name}/${set}-${i}`, 48);
        const rgb = new Float32Array(48 * 48 * 3), mirrored = rgb.slice();
        for (let p = 0; p < 48 * 48; p++) {
          const q = p - (p % 48) + 47 - (p % 48);
          for (let c = 0; c < 3; c++) {
            const value = cell[p * 4 + c] + 128 * (1 - cell[p * 4 + 3]);
            rgb[p * 3 + c] = mirrored[q * 3 + c] = value;
          }
        }
        return [rgb, mirrored];
      })
    );
    let nearest = Infinity;
    for (const [a, b] of [[0, 1], [0, 2], [1, 2]]) {
      for (const [first] of cells[a]) {
        for (const pair of cells[b]) {
          for (const other of pair) {
            let sum = 0;
            for (let i = 0; i < first.length; i++) {
              sum += (first[i] - other[i]) ** 2;
            }
            nearest = Math.min(nearest, Math.sqrt(sum / first.length));
          }
        }
      }
    }
    assert(Math.abs(nearest - distance) < 0.02, `${name}: ${nearest}`);
    // 9 of 255 is well above what re-encoding or resizing changes (about 2).
    assert(nearest > 9, `${name}: ${nearest}`);
  }
});

Deno.test("training images vary, masks cover the identity alone", () => {
  assert(TRAIN_IMAGES >= 10 && TRAIN_IMAGES <= 15);
  for (const { name } of IDENTITIES) {
    const images = conceptImages(name, "train", art);
    assertEquals(images.length, TRAIN_IMAGES);
    assertEquals(images, conceptImages(name, "train", art));
    const of = <T>(f: (i: number) => T): number =>
      new Set(images.map((_, i) => f(i))).size;
    assertEquals(of((i) => images[i].scene.background), 10, name);
    assert(of((i) => images[i].scene.objects[0].scale) >= 2, name);
    assert(of((i) => images[i].scene.objects[0].place) >= 3, name);
    assert(of((i) => images[i].scene.objects[0].design) >= 8, name);
    for (const { image, mask, scene, caption } of images) {
      assertEquals(image.length, 64 * 64 * 3);
      assertEquals(mask.length, 64 * 64);
      assertEquals(scene.objects.length, 1);
      assertEquals(scene.objects[0].color, null);
      assert(scene.objects[0].design.startsWith("train-"));
      const area = mask.reduce((sum, alpha) => sum + alpha, 0);
      assert(area > 150 && area < 64 * 64 / 2, `${name}: ${area}`);
      assert(caption.includes(PLACEHOLDER));
    }
  }
});

Deno.test("reference images are balanced over all backgrounds", () => {
  assert(REFERENCE_IMAGES >= 16);
  for (const { name } of IDENTITIES) {
    const count = new Map<string, number>();
    for (const { scene } of conceptImages(name, "reference", art)) {
      count.set(scene.background, (count.get(scene.background) ?? 0) + 1);
      assert(scene.objects[0].design.startsWith("reference-"));
    }
    assertEquals(count.size, WORLD.backgrounds.length);
    assertEquals(new Set(count.values()), new Set([2]));
  }
});

Deno.test("images for the evaluation CLIP come from the third block only", () => {
  let pairs = 0, tinted = 0;
  for (let i = 0; i < 200; i++) {
    const { scene, nameCaption } = conceptImage("momo", "clip", i, art);
    const self = scene.objects.find((object) => object.noun === "momo")!;
    assert(self.design.startsWith("clip-"));
    assert(nameCaption.split(" ").includes("momo"), nameCaption);
    if (scene.objects.length === 2) pairs++;
    if (self.color) tinted++;
  }
  assert(pairs > 35 && pairs < 90, `${pairs}`);
  assert(tinted > 40 && tinted < 100, `${tinted}`);
});

Deno.test("captions can name the class, the concept or the identity", () => {
  const text = "a photo of a <TOKEN> and a fox on grass";
  assertEquals(
    fillToken(text, "animal"),
    "a photo of an animal and a fox on grass",
  );
  assertEquals(
    fillToken(text, "<momo1> <momo2>"),
    "a photo of a <momo1> <momo2> and a fox on grass",
  );
  assertEquals(fillToken("photo of <TOKEN>", "animal"), "photo of animal");
  for (const { name, class: cls } of IDENTITIES) {
    const { classCaption, nameCaption } = conceptImage(name, "train", 0, art);
    assert(classCaption.split(" ").includes(cls));
    assert(nameCaption.split(" ").includes(name));
    assert(!/\ba [aeiou]|\ban [^aeiou]/.test(classCaption), classCaption);
  }
});

Deno.test("look-alikes are other hands' drawings of the same code point", () => {
  for (const { name } of IDENTITIES) {
    const designs = otherDesigns(name, art);
    assert(designs.length >= 1, name);
    assert(!designs.includes("glossy") && !designs.includes("flat"));
    const { scene, image } = otherDesignImage(name, designs[0], 4, art);
    assertEquals(scene.background, WORLD.backgrounds[4].word);
    assertEquals(image.length, 64 * 64 * 3);
  }
});

Deno.test("unknown concepts and indices are errors", async () => {
  assertThrows(() => identityOf("nobody"), Error, "Cannot find a concept");
  assertThrows(
    () => conceptImage("momo", "train", TRAIN_IMAGES, art),
    Error,
    `Cannot draw momo: expected an index below ${TRAIN_IMAGES}`,
  );
  assertThrows(
    () => conceptImage("momo", "reference", -1, art),
    Error,
    "Cannot draw momo",
  );
  assertThrows(
    () =>
      conceptImage("momo", "train", 0, {
        sprites: new Map(),
        scaled: new Map(),
      }),
    Error,
    "see loadConceptArt",
  );
  await assertRejects(() => loadConceptArt(new URL("file:///no/such/folder/")));
});
