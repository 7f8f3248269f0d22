import { assertEquals } from "@std/assert";
import { evaluateCommand, scorePictures } from "../../src/cli/evaluate.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { disposeClip, loadClip } from "../../src/evaluation/clip.ts";
import { mean, tInterval } from "../../src/evaluation/statistics.ts";
import { encodePng } from "../../src/io/png.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

Deno.test("a layout's pictures are scored, each with its regions as one sample", async () => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  const clip = await loadClip((await writeTinyWorld(folder)).clip);
  try {
    const images = `${folder}/drawn`;
    await Deno.mkdir(images);
    const side = 64;
    for (let i = 0; i < 4; i++) {
      const data = Uint8Array.from(
        { length: side * side * 3 },
        (_, p) => (p * (7 + 11 * i)) % 256,
      );
      await Deno.writeFile(
        `${images}/00${i}.png`,
        encodePng({ width: side, height: side, channels: 3, data }),
      );
    }
    const box = { top: 0, left: 0, bottom: 1, right: 0.5 };
    await Deno.writeTextFile(
      `${images}/layout.json`,
      JSON.stringify({
        prompt: "two animals",
        // One of the four is of an earlier layout.
        count: 3,
        regions: [
          { box, prompt: "a fox" },
          { box: { ...box, left: 0.5, right: 1 }, prompt: "a cat" },
        ],
      }),
    );
    const report = await scorePictures(
      evaluateCommand.parse(["--images", images, "--regions", "--no-prefix"])!,
      clip,
    );
    assertEquals(
      report.pictures.map(({ file }) => file),
      ["000.png", "001.png", "002.png"],
    );
    assertEquals(
      report.regions,
      tInterval(
        report.pictures.map(({ regions }) => mean(regions!.map((r) => r.text))),
      ),
    );
    // Without a layout nothing is known to be of another one.
    await Deno.remove(`${images}/layout.json`);
    const all = await scorePictures(
      evaluateCommand.parse(["--images", images, "--prompt", "a fox"])!,
      clip,
    );
    assertEquals(all.pictures.length, 4);
  } finally {
    disposeClip(clip);
    await Deno.remove(folder, { recursive: true });
  }
});
