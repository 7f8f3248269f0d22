import { assertEquals, assertRejects } from "@std/assert";
import { parseLayout, resolveLayout } from "../../src/diffusion/layout.ts";
import {
  layoutIn,
  parametersText,
  withSettings,
} from "../../src/diffusion/picture_settings.ts";
import { encodePng } from "../../src/io/png.ts";
import { textsOf, withTexts } from "../../src/io/png_text.ts";

const layout = { prompt: "a fox", negative: "fog", seed: 5, count: 2 };
const picture = {
  ...{ width: 4, height: 2, channels: 1 as const },
  data: new Uint8Array([0, 255, 255, 0, 9, 9, 9, 9]),
};
const said = {
  ...{ layout, settings: parseLayout(layout), number: 1, size: picture },
  model: "/models/tiny.safetensors",
};

Deno.test("A1111's text names what the picture was drawn with", () => {
  assertEquals(
    parametersText(said),
    "a fox\nNegative prompt: fog\nSteps: 20, Sampler: DPM++ 2M, " +
      "CFG scale: 7.5, Seed: 5, Size: 4x2, Model: tiny, Picture: 1",
  );
});

Deno.test("settings in a picture are read from bytes and blobs", async () => {
  const png = withSettings(encodePng(picture), said);
  assertEquals(textsOf(png).get("parameters"), parametersText(said));
  assertEquals(await layoutIn(png), layout);
  assertEquals(await layoutIn(new Blob([Uint8Array.from(png)])), layout);
});

Deno.test("a picture without a layout is refused", async () => {
  const png = encodePng(picture);
  await assertRejects(() => layoutIn(png), Error, "got no settings in it");
  await assertRejects(
    () => layoutIn(withTexts(png, { parameters: "a fox" })),
    Error,
    "got one that another program has drawn",
  );
});

Deno.test("a layout may hold its pictures as data: URLs", async () => {
  const file = `data:image/png;base64,${encodePng(picture).toBase64()}`;
  const { regions, conditions } = await resolveLayout(parseLayout({
    prompt: "snow",
    regions: [{ prompt: "a fox", mask: { file } }],
    conditions: [{ type: "t2i_adapter", network: "sketch", image: { file } }],
  }));
  const [{ shape }] = regions;
  assertEquals("mask" in shape && Array.from(shape.mask.values).slice(0, 4), [
    0,
    1,
    1,
    0,
  ]);
  assertEquals(conditions[0].image.width, 4);
});

Deno.test("a data: URL that is no picture is refused at its field", async () => {
  await assertRejects(
    () =>
      resolveLayout(parseLayout({
        prompt: "snow",
        regions: [{ prompt: "a fox", mask: { file: "data:,hello" } }],
      })),
    Error,
    "regions.0.mask.file: Cannot read a picture",
  );
});
