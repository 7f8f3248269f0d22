import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  bucketSizes,
  encodeBuckets,
  encodeData,
  type Example,
  readExamples,
  square,
} from "../../src/customize/dataset.ts";
import { fillCaption } from "../../src/customize/captions.ts";
import { readPicture } from "../../src/io/picture.ts";
import { encodePng, type Pixels } from "../../src/io/png.ts";
import { encode } from "../../src/models/autoencoder.ts";
import { disposeModel } from "../../src/models/model.ts";
import { close, forEachBackend, noLeak } from "../helpers.ts";
import { tinySd } from "./tiny_sd.ts";

const PICTURES = new URL("../fixtures/pictures/", import.meta.url);

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
    for (
      const [to, from] of [["c.jpeg", "420.jpg"], ["e.x.webp", "lossy.webp"]]
    ) {
      await Deno.copyFile(new URL(from, PICTURES), `${folder}/${to}`);
    }
    const all = await readExamples(folder, { size: 4 });
    assertEquals(all.length, 4);
    for (const [i, name] of [[2, "420.jpg"], [3, "lossy.webp"]] as const) {
      const whole = await readPicture(new URL(name, PICTURES));
      assertEquals(all[i].pixels, square(whole, 4));
    }
    await Deno.writeFile(`${folder}/d.jpg`, new Uint8Array(3));
    await assertRejects(
      () => readExamples(folder, { size: 4 }),
      Error,
      "expected a PNG, JPEG, WebP or AVIF",
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

/** A folder with `a.png` and `masks/a.png` in it. */
async function withMask(
  image: Pixels,
  mask: Pixels,
  check: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.mkdir(`${folder}/masks`);
    await Deno.writeFile(`${folder}/a.png`, encodePng(image));
    await Deno.writeFile(`${folder}/masks/a.png`, encodePng(mask));
    await check(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function drawn(
  width: number,
  height: number,
  channels: number,
  value: (x: number, y: number, k: number) => number,
): Pixels {
  const data = Uint8Array.from(
    { length: width * height * channels },
    (_, i) => {
      const [pixel, k] = [Math.floor(i / channels), i % channels];
      return value(pixel % width, Math.floor(pixel / width), k);
    },
  );
  return { width, height, channels, data };
}

Deno.test("a mask lies where the subject is, or is refused", async () => {
  const isSubject = (x: number, y: number) =>
    x >= 18 && x < 22 && y >= 4 && y < 12;
  const image = drawn(32, 16, 3, (x, y) => isSubject(x, y) ? 220 : 30);
  const size = 16;
  const half = drawn(16, 8, 1, (x, y) => isSubject(2 * x, 2 * y) ? 255 : 0);
  const cut = drawn(
    32,
    16,
    4,
    (x, y, k) => isSubject(x, y) ? (k < 3 ? 20 : 255) : 0,
  );
  for (const mask of [half, cut]) {
    await withMask(image, mask, async (folder) => {
      const [{ pixels, mask }] = await readExamples(folder, { size });
      // Inside the mask is what is bright in the picture, pixel by pixel.
      const bright = Array.from(
        { length: size * size },
        (_, i) => pixels.data[3 * i] > 125 ? 1 : 0,
      );
      assertEquals(Array.from(mask!.data), bright);
      assertEquals(bright.filter((v) => v === 1).length, 32);
    });
  }
  const squareMask = drawn(16, 16, 1, () => 255);
  await withMask(image, squareMask, async (folder) => {
    await assertRejects(
      () => readExamples(folder, { size }),
      Error,
      `Cannot lay ${folder}/masks/a.png over its picture: expected the ` +
        "picture's 32×16, or that shape in another size, got 16×16",
    );
  });
  // Only in what the centred square leaves out.
  const outside = drawn(32, 16, 1, (x) => x < 4 ? 255 : 0);
  await withMask(image, outside, async (folder) => {
    await assertRejects(
      () => readExamples(folder, { size }),
      Error,
      `Cannot use mask ${folder}/masks/a.png: expected something white`,
    );
  });
});

Deno.test("transparent training pictures show the background asked for", async () => {
  const image = drawn(4, 4, 4, (x, _, k) => x < 2 ? 0 : k === 3 ? 255 : 90);
  const full = drawn(4, 4, 1, () => 255);
  await withMask(image, full, async (folder) => {
    const row = async (background?: readonly [number, number, number]) => {
      const [{ pixels, transparent }] = await readExamples(folder, {
        size: 4,
        background,
      });
      assertEquals(transparent, true);
      return [...pixels.data.subarray(0, 12)];
    };
    const right = new Array(6).fill(90);
    assertEquals(await row(), [...new Array(6).fill(255), ...right]);
    assertEquals(await row([1, 2, 3]), [1, 2, 3, 1, 2, 3, ...right]);
  });
});

Deno.test("buckets have a square's area at most, and kohya's sizes", () => {
  // kohya's make_bucket_resolutions((512, 512), 256, 1024, 64).
  const sizes = bucketSizes(512, 64);
  assertEquals(sizes.map(({ width, height }) => [width, height]), [
    ...[[256, 832], [256, 896], [256, 960], [256, 1024], [320, 704]],
    ...[[320, 768], [384, 640], [448, 576], [512, 512]],
    ...[[576, 448], [640, 384], [704, 320], [768, 320], [832, 256]],
    ...[[896, 256], [960, 256], [1024, 256]],
  ]);
  for (const side of [64, 96, 512, 640]) {
    for (const { width, height } of bucketSizes(side, 32)) {
      assertEquals([width % 32, height % 32], [0, 0]);
      assert(width * height <= side * side && height >= side / 2);
    }
  }
});

Deno.test("pictures keep their shape in buckets, masks and class pictures too", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.mkdir(`${folder}/masks`);
    const put = (name: string, w: number, h: number, value = 90) =>
      Deno.writeFile(
        `${folder}/${name}.png`,
        encodePng({
          ...{ width: w, height: h, channels: 1 },
          // Bright at both ends, which a centred square leaves out.
          data: Uint8Array.from(
            { length: w * h },
            (_, i) => i % w < w / 8 || i % w >= w * 7 / 8 ? 255 : value,
          ),
        }),
      );
    await put("a", 128, 64);
    await put("b", 60, 120);
    await put("c", 70, 64);
    await put("masks/a", 128, 64, 0);
    const read = await readExamples(folder, { size: 64, buckets: 16 });
    assertEquals(read.map(({ pixels: { width, height } }) => [width, height]), [
      [80, 48],
      [48, 80],
      [64, 64],
    ]);
    const [{ pixels, mask }] = read;
    assertEquals([mask!.width, mask!.height], [80, 48]);
    // 80×48 is not quite 2:1: a little of each end is cut off.
    const bright = Array.from(
      { length: 80 * 48 },
      (_, i) => pixels.data[3 * i] > 200 ? 1 : 0,
    );
    assert(bright.includes(1));
    const square = await readExamples(folder, {
      size: { width: 80, height: 48 },
    });
    assertEquals(square[0].pixels.data, pixels.data);
    assertEquals(square[2].pixels.width, 80);
    await assertRejects(
      () => readExamples(folder, { size: 8, buckets: 16 }),
      Error,
      "Cannot make buckets: expected a size of at least 16, got 8",
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

forEachBackend(
  "pictures of several sizes are encoded apart, repeats together",
  async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const sized = (side: number, repeats: number) => ({
        ...picture(9, side),
        mask: undefined,
        repeats,
      });
      const [small, large] = await encodeBuckets(model, [
        sized(16, 20),
        sized(32, 10),
        sized(16, 10),
      ]);
      // 20 : 10 and 10, though all of the larger ones have the same.
      assertEquals([small.count, large.count], [3, 1]);
      const alone = await encodeData(model, [sized(32, 1)]);
      assertEquals(large.mean, alone.mean);
      disposeModel(model);
    });
  },
  ["wasm"],
);
