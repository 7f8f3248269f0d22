import { assertEquals } from "@std/assert";
import { settingsOf } from "../../src/experiments/presets.ts";
import { armCells, heldOutErrors } from "../../src/experiments/scores.ts";
import { firstPictures, type Subject } from "../../src/experiments/subjects.ts";
import type { Lab } from "../../src/lab/lab.ts";
import type { PictureSet } from "../../src/lab/specs.ts";

const art: PictureSet = { of: "art", concept: "kuro", set: "reference" };

Deno.test("a quick plan measures the held-out error on fewer pictures", async () => {
  const subject = { name: "kuro", references: art } as Subject;
  const measured = async (quick: boolean) => {
    const sets: PictureSet[] = [];
    const lab = {
      heldout: (asks: { pictures: PictureSet }[]) => {
        sets.push(...asks.map(({ pictures }) => pictures));
        return Promise.resolve([]);
      },
    } as unknown as Lab;
    await heldOutErrors(
      lab,
      settingsOf({}, quick),
      armCells("base", 0, [subject]),
    );
    return sets;
  };
  assertEquals(await measured(false), [art]);
  assertEquals(await measured(true), [{ ...art, count: 8 }]);
});

Deno.test("the first pictures of a set", () => {
  const [a, b, c] = ["a", "b", "c"].map((name) => ({ name }) as never);
  const drawn: PictureSet = { of: "drawn", pictures: [a, b, c] };
  assertEquals(firstPictures(drawn, 2), { of: "drawn", pictures: [a, b] });
  assertEquals(firstPictures(art, 3), { ...art, count: 3 });
  assertEquals(firstPictures(drawn), drawn);
});
