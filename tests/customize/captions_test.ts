import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  captionsBeside,
  kohyaFolder,
  triggered,
} from "../../src/customize/captions.ts";
import { checkCaptions, requireNamed } from "../../src/customize/check.ts";
import {
  encodeData,
  type Example,
  folderClass,
  readExamples,
} from "../../src/customize/dataset.ts";
import { matchMasks } from "../../src/customize/masks.ts";
import { encodePng } from "../../src/io/png.ts";
import { disposeModel } from "../../src/models/model.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { tinySd } from "./tiny_sd.ts";

Deno.test("trigger words become the placeholder, whole and in any case", () => {
  const cases: [caption: string, trigger: string, expected: string][] = [
    ["Rex, on grass", "rex", "{}, on grass"],
    ["a photo of rex's friend, rex", "rex", "a photo of {}'s friend, {}"],
    ["trex, rexy", "rex", "trex, rexy"],
    ["1girl, red_fox, grass", "red fox", "1girl, {}, grass"],
    ["a (b) c", "(b)", "a {} c"],
    ["a {} with rex", "rex", "a {} with rex"],
    ["ein Bär hier", "bär", "ein {} hier"],
  ];
  for (const [caption, trigger, expected] of cases) {
    assertEquals(triggered(caption, trigger), expected);
  }
});

Deno.test("kohya's folder names say repeats, trigger words and class", () => {
  assertEquals(kohyaFolder("data/10_sks dog/"), {
    repeats: 10,
    words: "sks dog",
    trigger: "sks",
    class: "dog",
  });
  assertEquals(kohyaFolder("3_dog")?.trigger, undefined);
  assertEquals(kohyaFolder("3_dog")?.class, "dog");
  for (const other of ["dog", "0_dog", "10", "x_10_dog"]) {
    assertEquals(kohyaFolder(other), undefined);
  }
});

Deno.test("masks are found by the names that people give them", () => {
  const { masks, unmatched, unused } = matchMasks(
    ["a.png", "B.jpg", "c.jpeg", "d.png", "e.png", "f.png"],
    [
      ...["a.jpg", "b_mask.png", "C-masklabel.png", "mask_d.png"],
      ...["e.png.png", "other.png"],
    ],
  );
  assertEquals([...masks], [
    ["a.png", "a.jpg"],
    ["B.jpg", "b_mask.png"],
    ["c.jpeg", "C-masklabel.png"],
    ["d.png", "mask_d.png"],
    ["e.png", "e.png.png"],
  ]);
  assertEquals(unmatched, ["f.png"]);
  assertEquals(unused, ["other.png"]);
  assertThrows(
    () => matchMasks(["a.png"], ["a.png", "a.jpg"]),
    Error,
    "expected one mask, got a.png and a.jpg",
  );
  // The plain name goes before a marked one.
  assertEquals(
    matchMasks(["a.png"], ["a.png", "a_mask.png"]).masks.get("a.png"),
    "a.png",
  );
});

const dot = (value: number) =>
  encodePng({
    width: 16,
    height: 16,
    channels: 1,
    data: new Uint8Array(256).fill(value),
  });

Deno.test("kohya's folders are read with their repeats, .caption files and class", async () => {
  await selectBackend("cpu");
  const folder = await Deno.makeTempDir();
  const model = await tinySd();
  try {
    for (const [name, value] of [["4_rex dog", 0], ["2_rex dog", 255]]) {
      await Deno.mkdir(`${folder}/${name}`);
      await Deno.writeFile(`${folder}/${name}/a.png`, dot(Number(value)));
    }
    await Deno.writeTextFile(
      `${folder}/4_rex dog/a.caption`,
      "\n rex dog, grass\n",
    );
    assertEquals(await folderClass(folder), "dog");
    const examples = await readExamples(folder, { size: 16 });
    assertEquals(
      examples.map(({ captions, repeats }) => [captions[0], repeats]),
      [["photo of a {}", 2], ["{} dog, grass", 4]],
    );
    // 2 and 4 are once and twice.
    const data = await encodeData(model, examples);
    assertEquals(data.count, 3);
    assertEquals(data.captions[1], data.captions[2]);
    const size = data.mean.length / 3;
    assertEquals(
      data.mean.slice(size, 2 * size),
      data.mean.slice(2 * size),
    );
    await Deno.writeTextFile(`${folder}/4_rex dog/a.txt`, "another");
    await assertRejects(
      () => captionsBeside(`${folder}/4_rex dog`, "a"),
      Error,
      "got a.txt and a.caption",
    );
    // A folder of masks that are of other pictures, or of none.
    const masks = `${folder}/none`;
    await Deno.mkdir(masks);
    const read = () => readExamples(`${folder}/2_rex dog`, { size: 16, masks });
    await assertRejects(read, Error, "got none");
    await Deno.writeFile(`${masks}/z.png`, dot(255));
    await assertRejects(read, Error, "masks named like the pictures (a.png)");
    await Deno.writeFile(`${masks}/a_mask.jpg.png`, dot(255));
    await assertRejects(read, Error, "masks named like the pictures (a.png)");
    await Deno.writeFile(`${masks}/A_Mask.png`, dot(255));
    assertEquals((await read())[0].mask!.data[0], 1);
  } finally {
    disposeModel(model);
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("captions that do not name the concept, or lose it, are counted", async () => {
  await selectBackend("cpu");
  const model = await tinySd();
  try {
    const pixels = {
      width: 1,
      height: 1,
      channels: 1,
      data: new Uint8Array(1),
    };
    const limit = model.tokenizer.modelMaxLength - 2;
    const long = Array.from({ length: limit }, () => "a").join(" ");
    const examples: Example[] = [
      { pixels, captions: ["a {}", "{}"], captionFile: "a.txt" },
      { pixels, captions: ["a dog"], name: "b.png" },
      { pixels, captions: [`${long} {}`], captionFile: "c.txt" },
      { pixels, captions: [`{} ${long}`], captionFile: "d.txt" },
    ];
    const check = checkCaptions(model, { phrase: "fox" }, examples);
    assertEquals(check.total, 5);
    assertEquals(check.naming, 3);
    assertEquals(check.files, 3);
    assertEquals(check.unnamed, ["b.png", "c.txt"]);
    assertEquals(
      check.cut.map(({ file, concept }) => [file, concept]),
      [["c.txt", true], ["d.txt", false]],
    );
    assertEquals(check.cut[0].limit, limit);
    assertEquals(check.cut[0].lost, "fox");
    requireNamed(check);
    assertThrows(
      () =>
        requireNamed(
          checkCaptions(model, { phrase: "fox" }, examples.slice(1, 3)),
        ),
      Error,
      "before the text encoder's limit, got none in b.png, c.txt",
    );
  } finally {
    disposeModel(model);
  }
});
