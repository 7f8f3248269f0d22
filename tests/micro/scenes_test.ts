import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, stream } from "../../src/core/random.ts";
import { loadArt } from "../../src/micro/art.ts";
import { captionOf } from "../../src/micro/captions.ts";
import {
  heldOutScene,
  isHeldOut,
  renderMask,
  renderScene,
  sampleScene,
  type Scene,
  trainScene,
} from "../../src/micro/scenes.ts";
import { WIDE_WORLD, WORLD } from "../../src/micro/world.ts";

const art = await loadArt();

Deno.test("the same index gives the same scene and the same bytes", () => {
  for (const i of [0, 1, 99]) {
    assertEquals(trainScene(i), trainScene(i));
    assertEquals(
      renderScene(trainScene(i), art),
      renderScene(trainScene(i), art),
    );
  }
  assert(
    renderScene(trainScene(0), art).join() !==
      renderScene(trainScene(1), art).join(),
  );
});

Deno.test("a tenth of the combinations is held out, from both orders", () => {
  let held = 0;
  for (let i = 0; i < 5000; i++) {
    const scene = sampleScene(stream(key(i)));
    if (!isHeldOut(scene)) continue;
    held++;
    assert(isHeldOut({ ...scene, objects: scene.objects.toReversed() }));
  }
  // Binomial standard deviation over combinations is about .6 percentage points.
  assert(held > 5000 * 0.08 && held < 5000 * 0.12, `${held} of 5000`);
  for (let i = 0; i < 500; i++) {
    assert(!isHeldOut(trainScene(i)));
    assert(isHeldOut(heldOutScene(i)));
  }
});

Deno.test("scenes are one object or two, in the world's shares", () => {
  const scenes = Array.from({ length: 4000 }, (_, i) => trainScene(i));
  const share = (has: (scene: Scene) => boolean): number =>
    scenes.filter(has).length / scenes.length;
  // Four standard deviations of a share of 4,000 are at most .032.
  const pairs = share((scene) => scene.objects.length === 2);
  assert(Math.abs(pairs - WORLD.pairs) < 0.032, `${pairs}`);
  const tinted = share((scene) => scene.objects[0].color !== null);
  assert(Math.abs(tinted - WORLD.tinted) < 0.032, `${tinted}`);
  for (const { word } of WORLD.nouns) {
    assert(share((scene) => scene.objects[0].noun === word) > 0.02, word);
  }
  for (const { word } of WORLD.backgrounds) {
    assert(share((scene) => scene.background === word) > 0.07, word);
  }
});

Deno.test("options fix the number of objects and the background", () => {
  for (let i = 0; i < 50; i++) {
    const scene = heldOutScene(i, WORLD, { objects: 2, background: "sea" });
    assertEquals(scene.objects.length, 2);
    assertEquals(scene.background, "sea");
    assert(scene.objects[0].noun !== scene.objects[1].noun);
  }
});

Deno.test("objects lie inside the image, pairs in their own halves", () => {
  for (let i = 0; i < 1000; i++) {
    const scene = trainScene(i);
    for (const { x, y, scale } of scene.objects) {
      assert(x - scale / 2 > -4 && x + scale / 2 < scene.side + 4, `${i}`);
      assert(y - scale / 2 > -4 && y + scale / 2 < scene.side + 4, `${i}`);
    }
    if (scene.objects.length === 2) {
      const [left, right] = scene.objects;
      assertEquals([left.place, right.place], ["left", "right"]);
      assert(left.x < 32 && right.x > 32);
    }
  }
});

Deno.test("the mask is where an object changes the picture", () => {
  for (let i = 0; i < 40; i++) {
    const scene = trainScene(i);
    const bare = renderScene({ ...scene, objects: [] }, art);
    const full = renderScene(scene, art);
    const masks = scene.objects.map((_, k) => renderMask(scene, art, k));
    for (let p = 0; p < 64 * 64; p++) {
      const cover = Math.max(...masks.map((mask) => mask[p]));
      assert(cover >= 0 && cover <= 1 + 1e-5);
      if (cover > 0) continue;
      for (let c = 0; c < 3; c++) {
        assertEquals(full[p * 3 + c], bare[p * 3 + c]);
      }
    }
    const area = masks[0].reduce((sum, alpha) => sum + alpha, 0);
    assert(area > 64, `object of ${area} pixels`);
  }
});

Deno.test("a tint turns an object's mean colour to the tint's hue", () => {
  const dominant: Record<string, (rgb: number[]) => boolean> = {
    red: ([r, g, b]) => r > 1.8 * g && r > 1.8 * b,
    yellow: ([r, g, b]) => r > 2 * b && g > 2 * b,
    green: ([r, g, b]) => g > 1.5 * r && g > 1.5 * b,
    blue: ([r, g, b]) => b > 1.5 * r && b > 1.5 * g,
    purple: ([r, g, b]) => b > 1.5 * g && r > 1.2 * g,
    pink: ([r, g, b]) => r > 1.15 * g && r > b && b > g,
  };
  for (const { word } of WORLD.colors) {
    for (const noun of ["fox", "ghost", "car", "cactus"]) {
      const scene: Scene = {
        ...trainScene(0),
        objects: [{
          ...trainScene(0).objects[0],
          noun,
          design: "glossy",
          color: word,
        }],
      };
      const image = renderScene(scene, art), mask = renderMask(scene, art);
      const rgb = [0, 1, 2].map((c) =>
        mask.reduce((sum, a, p) => sum + (a > 0.99 ? image[p * 3 + c] : 0), 0)
      );
      assert(dominant[word](rgb), `${word} ${noun}: ${rgb}`);
    }
  }
});

Deno.test("backgrounds differ: nearest mean picture names each", () => {
  // A closed form of "clearly different": 8×8 averages tell them apart.
  const thumb = (background: string, texture: number): number[] => {
    const image = renderScene(
      { side: 64, background, texture, objects: [] },
      art,
    );
    const cells = new Array(8 * 8 * 3).fill(0);
    for (let p = 0; p < 64 * 64; p++) {
      const cell = ((p >> 9) * 8 + ((p & 63) >> 3)) * 3;
      for (let c = 0; c < 3; c++) cells[cell + c] += image[p * 3 + c] / 64;
    }
    return cells;
  };
  const words = WORLD.backgrounds.map((background) => background.word);
  assert(words.length >= 8);
  const means = words.map((word) => thumb(word, 1000));
  let right = 0;
  for (let i = 0; i < 200; i++) {
    const seen = thumb(words[i % words.length], i);
    const far = means.map((mean) =>
      mean.reduce((sum, value, k) => sum + (value - seen[k]) ** 2, 0)
    );
    if (far.indexOf(Math.min(...far)) === i % words.length) right++;
  }
  assert(right >= 198, `${right} of 200`);
});

Deno.test("wide scenes use only designs that exist", () => {
  for (let i = 0; i < 300; i++) {
    renderScene(trainScene(i, WIDE_WORLD, {}, art), art, WIDE_WORLD);
  }
});

Deno.test("bad scenes are errors", () => {
  const scene = trainScene(0);
  assertThrows(
    () => renderScene({ ...scene, background: "moon" }, art),
    Error,
    "Cannot draw a background",
  );
  assertThrows(
    () => renderMask(scene, art, 7),
    Error,
    "Cannot draw a mask",
  );
  const [object] = scene.objects;
  assertThrows(
    () =>
      renderScene(
        { ...scene, objects: [{ ...object, color: "ultraviolet" }] },
        art,
      ),
    Error,
    "Cannot tint an object",
  );
  const bare = { sprites: new Map(), scaled: new Map() };
  assertThrows(
    () => trainScene(0, WORLD, {}, bare),
    Error,
    "Cannot draw a scene",
  );
});

Deno.test("the world is still the one that the weights were trained on", () => {
  // First captions of seed 20231; change them only together with the weights.
  assertEquals(
    [0, 1, 2, 3, 4].map((i) => captionOf(trainScene(i), i)),
    [
      "a boat in the center with a night background",
      "a big animal with a sand background",
      "photo of a yellow fox at the top on brick",
      "a green grandpa on the left and a purple fox on the right at night",
      "a mushroom on the right and a red sunflower on the left on brick",
    ],
  );
});
