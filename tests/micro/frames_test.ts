import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { loadConceptArt, loadFrameIndex } from "../../src/micro/concepts.ts";
import {
  frameDistances,
  LEAST_FRAME_DISTANCE,
} from "../../src/micro/frames.ts";
import { IDENTITIES } from "../../src/micro/world.ts";

Deno.test("no two sets of an identity have nearly the same frame", async () => {
  const rows = frameDistances(await loadConceptArt(), await loadFrameIndex());
  assertEquals(
    rows.map(({ name }) => name).sort(),
    IDENTITIES.map(({ name }) => name).sort(),
  );
  for (const row of rows) {
    const { trainReference, trainClip, referenceClip, recorded } = row;
    const least = Math.min(trainReference, trainClip, referenceClip);
    // What was recorded when the art was cut is what is in the atlas.
    assertAlmostEquals(least, recorded, 0.02);
    assert(least >= LEAST_FRAME_DISTANCE, `${row.name}: ${least}`);
  }
});
