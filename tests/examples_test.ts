import { assert, assertEquals } from "@std/assert";
import { decodePng } from "../src/io/png.ts";
import { listFiles, ON_ONE_CORE, root, runDeno } from "./tools/repository.ts";

/** Arguments that make an example short, and the pictures it must draw. */
const EXAMPLES: Readonly<
  Record<
    string,
    { args: string[]; pictures: string[]; size?: [number, number] }
  >
> = {
  "examples/concept_pictures.ts": {
    args: ["fifi", "pictures"],
    pictures: ["pictures/0.png", "pictures/11.png", "pictures/masks/11.png"],
  },
  "examples/generate.ts": {
    args: ["a fox on grass"],
    pictures: ["out/examples/generate-0.png"],
  },
  "examples/regions.ts": {
    args: [],
    pictures: ["out/examples/plain.png", "out/examples/regions.png"],
    size: [96, 64],
  },
  "examples/train_concept.ts": {
    args: ["fifi", "2"],
    pictures: ["out/examples/fifi-start.png", "out/examples/fifi-end.png"],
  },
  "examples/fuse_concepts.ts": {
    args: [],
    pictures: ["out/examples/fused.png"],
    // Two concepts, each with the width of a training picture.
    size: [128, 64],
  },
};

Deno.test("every example has a test", async () => {
  // The studio is a page: tests/platform/studio.ts walks through it.
  const files = (await listFiles("examples", ".ts"))
    .filter((path) => !path.startsWith("examples/studio/"));
  assertEquals(files, Object.keys(EXAMPLES).sort());
});

for (
  const [path, { args, pictures, size = [64, 64] }] of Object.entries(EXAMPLES)
) {
  Deno.test(`${path} runs and draws`, async () => {
    const folder = await Deno.makeTempDir();
    try {
      const { code, stderr } = await runDeno(
        [
          ...["run", "-q", "--config", `${root}/deno.json`, "-P=local"],
          ...[ON_ONE_CORE, `${root}/${path}`, ...args],
        ],
        { cwd: folder },
      );
      assertEquals(code, 0, stderr);
      for (const picture of pictures) {
        const pixels = decodePng(await Deno.readFile(`${folder}/${picture}`));
        assertEquals([pixels.width, pixels.height], size);
        const { data } = pixels;
        assert(data.some((v) => v !== data[0]), `${picture} is of one colour`);
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}
