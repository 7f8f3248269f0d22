import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import {
  CLIP_SCORE_PREFIX,
  cosine,
  imageAlignment,
  textAlignment,
} from "../../src/evaluation/clip_score.ts";
import { squareAround, windows } from "../../src/evaluation/crops.ts";
import { centroid, gallery, retrieve } from "../../src/evaluation/retrieval.ts";

const at = (degrees: number) =>
  Float32Array.of(
    Math.cos(degrees * Math.PI / 180),
    Math.sin(degrees * Math.PI / 180),
  );

Deno.test("text alignment is 2.5·max(cos, 0)", () => {
  assertAlmostEquals(textAlignment(at(0), at(60)), 1.25, 1e-6);
  assertEquals(textAlignment(at(0), at(120)), 0);
  assertEquals(CLIP_SCORE_PREFIX, "A photo depicts ");
});

Deno.test("image alignment clips each pair before the mean", () => {
  // cos 0° = 1, cos 60° = ½, cos 180° counts 0: the mean is ½, not 1/6.
  assertAlmostEquals(
    imageAlignment(at(0), [at(0), at(60), at(180)]),
    0.5,
    1e-6,
  );
  assertThrows(() => imageAlignment(at(0), []), Error, "references");
  assertThrows(() => cosine(at(0), new Float32Array(3)), Error, "2 numbers");
});

Deno.test("a centroid is a direction", () => {
  const center = centroid([at(10), at(50)]);
  assertAlmostEquals(cosine(center, at(30)), 1, 1e-6);
  assertThrows(
    () => centroid([at(0), at(180)].map((v) => v.map(Math.round))),
    Error,
    "not zero",
  );
});

Deno.test("retrieval: nearest label, rank of the wanted one, best view counts", () => {
  const entries = gallery([["a", [at(0)]], ["b", [at(40)]], ["c", [at(90)]]]);
  assertEquals(retrieve([at(35)], entries).label, "b");
  assertEquals(retrieve([at(35)], entries, "c").rank, 3);
  assertEquals(retrieve([at(35), at(88)], entries, "c").rank, 1);
  assertThrows(() => retrieve([at(0)], entries, "d"), Error, "a, b, c");
  assertThrows(() => retrieve([], entries), Error, "a picture");
});

Deno.test("ties count against the wanted label", () => {
  const entries = gallery([["a", [at(0)]], ["b", [at(0)]]]);
  assertEquals(retrieve([at(20)], entries, "a").rank, 2);
});

Deno.test("a square around a mask stays inside and holds the object", () => {
  const mask = new Float32Array(100);
  for (const y of [0, 1, 2, 3]) for (const x of [7, 8]) mask[10 * y + x] = 1;
  // 4 rows, 2 columns: side 4·1.2 ≈ 5, pushed in from the top and right.
  assertEquals(squareAround(mask, 10), { x: 5, y: 0, width: 5, height: 5 });
  assertThrows(() => squareAround(new Float32Array(4), 2), Error, "object");
});

Deno.test("windows touch the edges and stay inside their region", () => {
  const region = { x: 32, y: 0, width: 32, height: 64 };
  const boxes = windows(64, 64, { region });
  for (const { x, y, width, height } of boxes) {
    assertEquals(width, height);
    assertEquals(
      x >= 32 && x + width <= 64 && y >= 0 && y + height <= 64,
      true,
    );
  }
  assertEquals(boxes.some(({ x, y }) => x === 32 && y === 0), true);
  assertEquals(boxes.some((b) => b.y + b.height === 64), true);
  assertEquals(
    new Set(boxes.map((b) => Object.values(b).join())).size,
    boxes.length,
  );
});
