import * as tf from "@tensorflow/tfjs";
import { assertEquals, assertRejects } from "@std/assert";
import {
  encodeData,
  type Example,
  readExamples,
  square,
} from "../../src/customize/dataset.ts";
import { encode as encodeJpeg } from "jpeg-js";
import { fillCaption } from "../../src/customize/captions.ts";
import { encodePng } from "../../src/io/png.ts";
import { encode } from "../../src/models/autoencoder.ts";
import { disposeModel } from "../../src/models/model.ts";
import { close, forEachBackend, noLeak } from "../helpers.ts";
import { tinySd } from "./tiny_sd.ts";

/** A picture of one colour with a mask on its left half. */
function picture(value: number, side = 16): Example {
  return {
    pixels: {
      width: side,
      height: side,
      channels: 3,
      data: Uint8Array.from(
        { length: side * side * 3 },
        (_, i) => (value + i) % 256,
      ),
    },
    captions: ["a {}"],
    mask: {
      width: side,
      height: side,
      data: Array.from(
        { length: side * side },
        (_, i) => i % side < 8 ? 255 : 0,
      ),
    },
  };
}

forEachBackend(
  "pictures are encoded once, batch size does not matter",
  async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const examples = [picture(0), picture(90), picture(200)];
      const all = await encodeData(model, examples, { batch: 3 });
      const single = await encodeData(model, examples, { batch: 1 });
      assertEquals([all.count, all.height, all.width, all.channels], [
        3,
        4,
        4,
        4,
      ]);
      close(all.mean, single.mean, 1e-6);
      close(all.std, single.std, 1e-6);
      assertEquals([...all.mask.subarray(0, 8)], [1, 1, 0, 0, 1, 1, 0, 0]);
      const flipped = await encodeData(model, examples, { flips: true });
      assertEquals(flipped.count, 6);
      assertEquals([...flipped.mask.subarray(48, 56)], [
        0,
        0,
        1,
        1,
        0,
        0,
        1,
        1,
      ]);
      close(flipped.mean.subarray(0, all.mean.length), all.mean, 1e-6);
      disposeModel(model);
    });
  },
  ["wasm"],
);

forEachBackend(
  "means are the autoencoder's, scaled; transparency is white",
  async () => {
    const model = await tinySd();
    const side = 8;
    const grey: Example = {
      pixels: {
        width: side,
        height: side,
        channels: 2,
        // Black, fully transparent: white.
        data: new Uint8Array(side * side * 2),
      },
      captions: ["x"],
    };
    const white: Example = {
      pixels: {
        width: side,
        height: side,
        channels: 3,
        data: new Uint8Array(side * side * 3).fill(255),
      },
      captions: ["x"],
    };
    const data = await encodeData(model, [grey, white]);
    const half = data.mean.length / 2;
    close(data.mean.subarray(0, half), data.mean.subarray(half), 1e-6);
    assertEquals([...data.mask], new Array(8).fill(1));
    const { config, params } = model.autoencoder;
    const [mean, logvar] = tf.tidy(() => {
      const images = tf.ones([1, side, side, 3]) as tf.Tensor4D;
      const posterior = encode(params, config, images);
      return [posterior.mean, posterior.logvar];
    });
    const [m, l] = [
      await mean.data() as Float32Array,
      await logvar.data() as Float32Array,
    ];
    close(
      data.mean.subarray(half),
      m.map((v) => v * config.scaling_factor),
      1e-6,
    );
    close(
      data.std.subarray(half),
      l.map((v) => Math.exp(v / 2) * config.scaling_factor),
      1e-6,
    );
    tf.dispose([mean, logvar]);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend("bad pictures are errors", async () => {
  const model = await tinySd();
  const { mask, ...plain } = picture(0);
  const bad: [Example[], string][] = [
    [[], "expected at least one, got none"],
    [[picture(0), picture(0, 32)], "expected 16×16 as the first"],
    [[picture(0, 18)], "multiples of 4"],
    [[{ ...plain, captions: [] }], "a caption"],
    [[{ ...plain, mask: { ...mask!, width: 8 } }], "a mask 16×16"],
    [
      [{ ...plain, mask: { ...mask!, data: new Uint8Array(256) } }],
      "a mask with something inside",
    ],
  ];
  for (const [examples, message] of bad) {
    await assertRejects(() => encodeData(model, examples), Error, message);
  }
  disposeModel(model);
}, ["wasm"]);

Deno.test("captions take the concept where it belongs", () => {
  assertEquals(
    fillCaption("photo of a {} ,  red", "<a> <b>"),
    "photo of a <a> <b> , red",
  );
  assertEquals(fillCaption("<TOK> and {}", "x"), "x and x");
  assertEquals(fillCaption("nothing", "x"), "nothing");
});

Deno.test("a folder of pictures, captions and masks", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.mkdir(`${folder}/masks`);
    const pixels = {
      width: 6,
      height: 4,
      channels: 3,
      data: Uint8Array.from({ length: 72 }, (_, i) => i % 3 === 0 ? 200 : 40),
    };
    await Deno.writeFile(`${folder}/b.png`, encodePng(pixels));
    await Deno.writeFile(`${folder}/a.png`, encodePng(pixels));
    await Deno.writeTextFile(`${folder}/a.txt`, "a {} here\n\n{} there\n");
    await Deno.writeFile(
      `${folder}/masks/a.png`,
      encodePng({
        width: 6,
        height: 4,
        channels: 1,
        data: Uint8Array.from({ length: 24 }, (_, i) => i % 6 < 3 ? 255 : 0),
      }),
    );
    const [a, b] = await readExamples(folder, { size: 4 });
    assertEquals(a.captions, ["a {} here", "{} there"]);
    assertEquals(b.captions, ["photo of a {}", "{}"]);
    assertEquals([a.pixels.width, a.pixels.height], [4, 4]);
    assertEquals([...a.pixels.data.subarray(0, 3)], [200, 40, 40]);
    assertEquals(Array.from(a.mask!.data).slice(0, 4), [1, 1, 0, 0]);
    assertEquals(b.mask, undefined);
    // A JPEG beside them is read as well, whatever it is called.
    const { data: jpeg } = encodeJpeg({
      width: 2,
      height: 2,
      data: new Uint8Array(16).fill(255),
    }, 100);
    await Deno.writeFile(`${folder}/c.jpeg`, jpeg);
    const all = await readExamples(folder, { size: 4 });
    assertEquals(all.length, 3);
    assertEquals([...all[2].pixels.data], new Array(48).fill(255));
    await Deno.writeFile(`${folder}/d.jpg`, new Uint8Array(3));
    await assertRejects(
      () => readExamples(folder, { size: 4 }),
      Error,
      "expected a PNG or a JPEG",
    );
    await Deno.remove(`${folder}/d.jpg`);
    await assertRejects(
      () => readExamples(folder, { size: 4, masks: `${folder}/none` }),
      Error,
      "expected a folder of masks",
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("resizing keeps a ramp a ramp", () => {
  const ramp = {
    width: 8,
    height: 8,
    channels: 1,
    data: Uint8Array.from({ length: 64 }, (_, i) => (i % 8) * 32),
  };
  // Inside, a triangle filter keeps linear functions.
  assertEquals([...square(ramp, 4).data.subarray(0, 4)].slice(1, 3), [80, 144]);
  assertEquals(square(ramp, 8).data, ramp.data);
  assertEquals(
    square({ ...ramp, data: ramp.data.fill(7) }, 3).data,
    new Uint8Array(9).fill(7),
  );
});
