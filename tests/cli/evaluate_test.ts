import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  evaluateCommand,
  type EvaluateRequest,
  scorePictures,
} from "../../src/cli/evaluate.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { disposeClip, loadClip } from "../../src/evaluation/clip.ts";
import { mean, tInterval } from "../../src/evaluation/statistics.ts";
import { encodePng } from "../../src/io/png.ts";
import { flatten } from "../../src/io/resize.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

/** What a command line asks for, of pictures' scores. */
function pictures(args: readonly string[]): EvaluateRequest {
  const asked = evaluateCommand.parse(args);
  if (asked?.type !== "pictures") throw new Error(`${asked?.type}`);
  return asked.request;
}

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
      pictures(["--images", images, "--regions", "--no-prefix"]),
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
      pictures(["--images", images, "--prompt", "a fox"]),
      clip,
    );
    assertEquals(all.pictures.length, 4);
  } finally {
    disposeClip(clip);
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("cut-outs score as what they show, on the background asked for", async () => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  const clip = await loadClip((await writeTinyWorld(folder)).clip);
  try {
    const side = 64;
    const cutOut = {
      width: side,
      height: side,
      channels: 4,
      data: Uint8Array.from({ length: side * side * 4 }, (_, i) => {
        const inside = (i >> 2) % side < side / 2;
        return inside ? i % 4 === 3 ? 255 : 40 + 50 * (i % 4) : 0;
      }),
    };
    const folders = {
      cut: cutOut,
      white: flatten(cutOut),
      red: flatten(cutOut, [255, 0, 0]),
    };
    for (const [name, image] of Object.entries(folders)) {
      await Deno.mkdir(`${folder}/${name}`);
      await Deno.writeFile(`${folder}/${name}/0.png`, encodePng(image));
    }
    const score = async (images: string, references: string, on?: string) => {
      const args = ["--images", images, "--references", references]
        .map((arg) => arg.startsWith("--") ? arg : `${folder}/${arg}`);
      const { pictures: [{ image }] } = await scorePictures(
        pictures([...args, ...(on ? ["--background", on] : [])]),
        clip,
      );
      return image!;
    };
    const near = (a: number, b: number) => Math.abs(a - b) < 1e-5;
    assert(near(await score("cut", "white"), 1));
    assert(near(await score("white", "cut"), 1));
    assert(near(await score("cut", "red", "#ff0000"), 1));
    assert(!near(await score("cut", "red"), 1));
    // An option that changes nothing is refused.
    await assertRejects(
      () => score("white", "red", "black"),
      Error,
      "Cannot use --background: expected a transparent picture, got none",
    );
    await assertRejects(
      () => score("cut", "white", "mauve"),
      Error,
      "--background: expected white, black, grey or #rrggbb, got mauve",
    );
  } finally {
    disposeClip(clip);
    await Deno.remove(folder, { recursive: true });
  }
});
