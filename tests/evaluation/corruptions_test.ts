import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import {
  corrupt,
  CORRUPTIONS,
  type MaskedPicture,
} from "../../src/evaluation/corruptions.ts";

/** A square subject of 32 pixels, of noise, on grey. */
function noisy(side = 64): MaskedPicture {
  const noise = normal(key(1), side * side * 3);
  const mask = new Float32Array(side * side);
  const data = new Uint8Array(side * side * 3).fill(128);
  for (let y = side / 4; y < side * 3 / 4; y++) {
    for (let x = side / 4; x < side * 3 / 4; x++) {
      mask[y * side + x] = 1;
      for (let c = 0; c < 3; c++) {
        const i = (y * side + x) * 3 + c;
        data[i] = Math.max(0, Math.min(255, 128 + 60 * noise[i]));
      }
    }
  }
  return { image: { width: side, height: side, channels: 3, data }, mask };
}

Deno.test("a corruption changes the subject and nothing else", () => {
  const subject = noisy();
  for (const how of CORRUPTIONS) {
    const { data, width, height } = corrupt(subject, how, key(2));
    assertEquals([width, height], [64, 64]);
    let changed = 0;
    data.forEach((value, i) => {
      if (value === subject.image.data[i]) return;
      changed++;
      assertEquals(subject.mask[Math.floor(i / 3)], 1, how);
    });
    assert(changed > 1000, how);
    assertEquals(corrupt(subject, how, key(2)).data, data, how);
  }
});

Deno.test("shuffled tiles are the same tiles, none in its place", () => {
  const subject = noisy();
  for (const [how, tile] of [["shuffled8", 8], ["shuffled4", 4]] as const) {
    const { data } = corrupt(subject, how, key(3));
    const tiles = (pixels: Uint8Array) => {
      const found: string[] = [];
      for (let y = 16; y < 48; y += tile) {
        for (let x = 16; x < 48; x += tile) {
          const rows = Array.from({ length: tile }, (_, r) => {
            const from = ((y + r) * 64 + x) * 3;
            return pixels.subarray(from, from + tile * 3).join();
          });
          found.push(rows.join(";"));
        }
      }
      return found;
    };
    const before = tiles(subject.image.data), after = tiles(data);
    assertEquals([...after].sort(), [...before].sort());
    before.forEach((text, i) => assert(after[i] !== text, `${how} ${i}`));
  }
  // Tiles grow with the picture.
  const large = noisy(128);
  const { data } = corrupt(large, "shuffled8", key(3));
  const row = (pixels: Uint8Array, x: number) =>
    pixels.subarray((32 * 128 + x) * 3, (32 * 128 + x + 16) * 3).join();
  const found = Array.from({ length: 4 }, (_, i) => 32 + 16 * i).some((x) =>
    Array.from({ length: 4 }, (_, j) => 32 + 16 * j).some((y) =>
      large.image.data.subarray((y * 128 + x) * 3, (y * 128 + x + 16) * 3)
        .join() === row(data, 32)
    )
  );
  assert(found);
});

Deno.test("blocks keep their mean colour, three hue turns are none", () => {
  const subject = noisy();
  const { data } = corrupt(subject, "pixelated8", key(4));
  for (let c = 0; c < 3; c++) {
    let sum = 0;
    const first = data[(16 * 64 + 16) * 3 + c];
    for (let y = 16; y < 24; y++) {
      for (let x = 16; x < 24; x++) {
        sum += subject.image.data[(y * 64 + x) * 3 + c];
        assertEquals(data[(y * 64 + x) * 3 + c], first);
      }
    }
    assert(Math.abs(sum / 64 - first) <= 0.5);
  }
  let turned = subject;
  for (let i = 0; i < 3; i++) {
    turned = { ...turned, image: corrupt(turned, "hue", key(5)) };
    if (i < 2) {
      assert(turned.image.data.some((v, k) => v !== subject.image.data[k]));
    }
  }
  assertEquals(turned.image.data, subject.image.data);
});

Deno.test("a blob has no edges inside", () => {
  const { data } = corrupt(noisy(), "blob", key(6));
  for (let x = 20; x < 44; x++) {
    const at = (32 * 64 + x) * 3;
    assert(Math.abs(data[at] - data[at + 3]) <= 4);
  }
});

Deno.test("what is no RGB picture with its mask is refused", () => {
  const { image, mask } = noisy();
  assertThrows(
    () => corrupt({ image, mask: mask.slice(1) }, "blob", key(1)),
    Error,
    "a mask of its size",
  );
  assertThrows(
    () => corrupt({ image: { ...image, channels: 4 }, mask }, "hue", key(1)),
    Error,
    "RGB",
  );
  assertThrows(
    () => corrupt({ image, mask: mask.map((m) => 255 * m) }, "blob", key(1)),
    Error,
    "mask values from 0 to 1, got 255",
  );
});

Deno.test("a blur is the mean of what is near, as a plain sum gives it", () => {
  const subject = noisy();
  const { data } = corrupt(subject, "blob", key(6));
  const { mask, image } = subject, side = 64, radius = 10;
  /** A box blur of a plane, written plainly. */
  const box = (plane: Float64Array) =>
    plane.map((_, i) => {
      let sum = 0;
      for (let dy = -radius; dy <= radius; dy++) {
        for (let dx = -radius; dx <= radius; dx++) {
          const y = Math.floor(i / side) + dy, x = i % side + dx;
          if (y >= 0 && y < side && x >= 0 && x < side) {
            sum += plane[y * side + x];
          }
        }
      }
      return sum;
    });
  const red = box(
    box(Float64Array.from(mask, (m, i) => m * image.data[3 * i])),
  );
  const area = box(box(Float64Array.from(mask)));
  mask.forEach((m, i) => {
    const wanted = m > 0 ? red[i] / area[i] : image.data[3 * i];
    assert(Math.abs(data[3 * i] - wanted) <= 0.51, `${i}`);
  });
});
