/**
 * What has to hold wherever JavaScript runs: one list, run in Deno on the source,
 * in Node on the package and in a page on the bundle.
 *
 * A behaviour throws if it does not hold. What it returns has to be the same
 * everywhere: pictures are compared bit for bit.
 *
 * @module
 */
import type * as library from "../../mod.ts";
import type { Concept, Model, Pixels } from "../../mod.ts";

/** Where a behaviour runs. */
export interface Place {
  /** The library, as it is used there. */
  readonly mos: typeof library;
  /** The folder of the embedded model, as an address. */
  readonly model: string;
  /** The folder of the test pictures, as an address. */
  readonly pictures: string;
}

/** One behaviour. */
export interface Behaviour {
  /** What holds. */
  readonly name: string;
  /** Checks it. */
  readonly run: () => Promise<string | void>;
}

function equal(got: unknown, expected: unknown, what: string): void {
  const [a, b] = [JSON.stringify(got), JSON.stringify(expected)];
  if (a !== b) throw new Error(`${what}: expected ${b}, got ${a}`);
}

function holds(condition: boolean, what: string): void {
  if (!condition) throw new Error(`does not hold: ${what}`);
}

async function refused(work: () => Promise<unknown>, text: RegExp) {
  try {
    await work();
  } catch (error) {
    const { message } = error as Error;
    return holds(text.test(message), `"${message}" fits ${text}`);
  }
  throw new Error(`nothing was refused: expected ${text}`);
}

/** SHA-256, the first 16 hexadecimal digits. */
async function digest(bytes: Uint8Array): Promise<string> {
  const hash = await crypto.subtle.digest("SHA-256", Uint8Array.from(bytes));
  return [...new Uint8Array(hash).subarray(0, 8)]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const pictureDigest = ({ width, height, data }: Pixels) =>
  digest(new Uint8Array([width, height, ...data]));

/** Collects what is written into a stream. */
function collected(): {
  to: WritableStream<Uint8Array>;
  blob(): Blob;
} {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  return {
    to: new WritableStream({
      write: (chunk) => void parts.push(Uint8Array.from(chunk)),
    }),
    blob: () => new Blob(parts),
  };
}

const bytesOf = async (blob: Blob) => new Uint8Array(await blob.arrayBuffer());

/** A disc of a colour on a ground, 64×64. */
function disc(red: number, green: number, blue: number): Pixels {
  const size = 64;
  const data = new Uint8Array(size * size * 3);
  for (let i = 0; i < size * size; i++) {
    const inside = Math.hypot(i % size - 32, Math.floor(i / size) - 32) < 20;
    data.set(inside ? [red, green, blue] : [230, 230, 210], i * 3);
  }
  return { width: size, height: size, channels: 3, data };
}

/**
 * The behaviours.
 *
 * @param place Where they run; one after the other, in their order.
 */
export function behaviours(
  { mos, model: folder, pictures }: Place,
): Behaviour[] {
  let base: Model;
  let fused: Model;
  const concepts: Concept[] = [];
  const drawing = { steps: 4, key: mos.key(7), guidance: 5 };
  const draw = async (model: Model, prompt: string, key = 7) => {
    const [picture] = await mos.generate(model, {
      ...drawing,
      key: mos.key(key),
      prompts: [prompt],
    });
    return picture;
  };
  const trained = async (name: string, pixels: Pixels, seed: number) => {
    const data = await mos.encodeData(base, [{ pixels, captions: ["a {}"] }]);
    const how = mos.method("ed-lora", "paper", {
      steps: 10,
      lr: { embedding: 5e-3, textEncoder: 1e-4, unet: 1e-3 },
    });
    const start = await mos.startConcept(base, how, {
      name,
      classWord: "animal",
      key: mos.key(seed),
    });
    const losses: number[] = [];
    const concept = await mos.customize(base, start, data, how.train, {
      onRecord: ({ loss }) => void losses.push(loss),
    });
    mos.disposeConcept(start);
    return { concept, losses };
  };
  const list: Record<string, () => Promise<string | void>> = {
    "wasm can be chosen, with its binaries found": async () => {
      const { name, note } = await mos.selectBackend("wasm");
      equal([name, note], ["wasm", ""], "the backend");
    },
    "another backend than those there are is refused": async () => {
      await refused(
        () => mos.selectBackend("webgl" as "wasm"),
        /^Cannot select a backend: expected .*wasm.*, got webgl/,
      );
    },
    "without an argument the embedded model is loaded": async () => {
      base = await mos.loadModel();
      equal(base.unet.config.in_channels > 0, true, "a UNet");
      holds(base.tokenizer.has("fox</w>"), "its tokenizer knows a fox");
    },
    "a model is loaded from an address": async () => {
      const other = await mos.loadModel(folder);
      equal(other.unet.config, base.unet.config, "the UNet's config");
      mos.disposeModel(other);
    },
    "a model that is not there is refused": async () => {
      await refused(
        () => mos.loadModel(folder.replace(/\/*$/, "-not")),
        /^Cannot /,
      );
    },
    "a seed draws the same picture everywhere": async () => {
      const picture = await draw(base, "a red fox");
      equal([picture.width, picture.height], [64, 64], "its size");
      const values = new Set(picture.data);
      holds(values.size > 20, `a picture of ${values.size} values`);
      return await pictureDigest(picture);
    },
    "another seed draws another picture": async () => {
      const [a, b] = [
        await pictureDigest(await draw(base, "a red fox")),
        await pictureDigest(await draw(base, "a red fox", 8)),
      ];
      holds(a !== b, "they differ");
      return b;
    },
    "a PNG is read as it was written": async () => {
      const picture = disc(200, 40, 10);
      const png = mos.encodePng(picture);
      const read = await mos.decodePicture(png);
      equal(await digest(read.data), await digest(picture.data), "the pixels");
      return await digest(png);
    },
    "JPEG, WebP and AVIF are decoded": async () => {
      const read = await Promise.all(
        ["420.jpg", "lossy.webp", "444.avif"].map((name) =>
          mos.readPicture(pictures + name)
        ),
      );
      return (await Promise.all(read.map(pictureDigest))).join();
    },
    "a concept is trained for ten steps": async () => {
      const { concept, losses } = await trained("rond", disc(200, 40, 10), 1);
      concepts.push(concept);
      equal(losses.length, 10, "the steps");
      holds(losses.every((loss) => loss > 0 && loss < 10), `${losses}`);
      return losses.map((loss) => loss.toPrecision(4)).join();
    },
    "a second concept is trained": async () => {
      const { concept } = await trained("blau", disc(20, 60, 220), 2);
      concepts.push(concept);
      equal(concept.phrase, "<blau1> <blau2>", "its words");
    },
    "a trained concept draws another picture than the model": async () => {
      const one = mos.attachConcept(base, concepts[0]);
      const phrase = concepts[0].phrase;
      const a = await pictureDigest(await draw(one, `a ${phrase}`));
      const b = await pictureDigest(await draw(base, "a animal"));
      mos.releaseTokens(one, base);
      holds(a !== b, "they differ");
      return a;
    },
    "a concept is written into a stream and read from a Blob": async () => {
      const file = collected();
      await mos.saveConcept(file.to, concepts[0], base);
      const read = await mos.loadConcept(file.blob(), base);
      equal(read.name, "rond", "its name");
      equal(read.adapter.unet.size, concepts[0].adapter.unet.size, "layers");
      mos.disposeConcept(read);
    },
    "a concept is read from bytes": async () => {
      const file = collected();
      await mos.saveConcept(file.to, concepts[1], base);
      const read = await mos.loadConcept(await bytesOf(file.blob()), base);
      equal(read.phrase, "<blau1> <blau2>", "its words");
      mos.disposeConcept(read);
    },
    "a LoRA is converted: kohya's file says what diffusers' says": async () => {
      const { adapter } = concepts[0];
      const kohya = collected();
      await mos.saveLora(kohya.to, { adapter }, base, "kohya");
      const read = await mos.loadLora(kohya.blob(), base);
      equal(read.dialect, "kohya", "the dialect");
      const again = collected(), straight = collected();
      await mos.saveLora(
        again.to,
        { adapter: read.adapter },
        base,
        "diffusers",
      );
      await mos.saveLora(straight.to, { adapter }, base, "diffusers");
      mos.disposeLora(read);
      const lora = await mos.loadLora(again.blob(), base);
      const other = await mos.loadLora(straight.blob(), base);
      equal(lora.adapter.unet.size, other.adapter.unet.size, "the layers");
      mos.disposeLora(lora);
      mos.disposeLora(other);
      return await digest(await bytesOf(again.blob()));
    },
    "a file that is no LoRA is refused": async () => {
      await refused(
        () => mos.loadLora(new Blob(["<!doctype html>"]), base),
        /^Cannot read .*: expected .*, got an HTML page/,
      );
    },
    "concepts are fused by weight": async () => {
      const average = mos.weightFusion(base, concepts);
      const picture = await draw(average, "a <rond1> <rond2>");
      mos.disposeModel(average, base);
      return await pictureDigest(picture);
    },
    "concepts are fused by gradient": async () => {
      let better = 0, layers = 0;
      fused = await mos.finish(
        mos.fuse(base, concepts, {
          steps: 2,
          stageIterations: { textEncoder: 10, kv: 10, spatial: 5 },
        }),
        (record) => {
          if (record.type !== "layer" || record.stage === "weight") return;
          layers++;
          if (record.lossAfter <= record.lossWeightFusion) better++;
        },
      );
      holds(layers > 10, `${layers} layers`);
      holds(better > layers / 2, `${better} of ${layers} have a smaller error`);
    },
    "the fused model knows both": async () => {
      const both = await draw(fused, "a <rond1> <rond2> and a <blau1> <blau2>");
      return await pictureDigest(both);
    },
    "concepts are merged by TIES": async () => {
      const merged = await mos.mergeConcepts(base, concepts, {
        method: "ties",
      });
      holds(merged.added!.names.length > 0, "it has their words");
      mos.disposeModel(merged, base);
    },
    "regions have prompts of their own": async () => {
      const regional = mos.regionalSampling(base, [
        {
          shape: { box: { top: 0.1, left: 0, bottom: 0.9, right: 0.5 } },
          prompt: "a fox",
        },
      ]);
      const [picture] = await mos.generate(base, {
        ...drawing,
        prompts: ["snow"],
        unet: (call) => regional.unet(call),
      });
      regional.dispose();
      const plain = await pictureDigest(await draw(base, "snow"));
      const own = await pictureDigest(picture);
      holds(own !== plain, "the region changes the picture");
      return own;
    },
    "a layout is parsed and drawn": async () => {
      const layout = mos.parseLayout({
        prompt: "snow",
        steps: 2,
        seed: 3,
        regions: [{
          box: { top: 0.1, left: 0.1, bottom: 0.9, right: 0.6 },
          prompt: "a <rond1> <rond2>",
        }],
      });
      let found = "";
      const plan = await mos.resolveLayout(layout);
      for await (const record of mos.drawLayout(fused, plan)) {
        if (record.type !== "images") continue;
        const [picture] = await mos.toPixels(record.images);
        record.images.dispose();
        found = await pictureDigest(picture);
      }
      holds(found !== "", "it was drawn");
      return found;
    },
    "pictures are scored by CLIP": async () => {
      const clip = await mos.loadClip(folder.replace(/\/*$/, "/clip_b"));
      const [image] = await mos.embedImages(clip, [disc(200, 40, 10)]);
      const [text] = await mos.embedTexts(clip, ["a red fox"]);
      const score = mos.textAlignment(image, text);
      mos.disposeClip(clip);
      holds(score >= 0 && score <= 2.5, `a score of ${score}`);
      return score.toPrecision(5);
    },
    "a held-out error is measured": async () => {
      const data = await mos.encodeData(base, [
        { pixels: disc(200, 40, 10), captions: ["a {}"] },
      ]);
      const { mean } = await mos.heldOutError(base, data, ["a animal"], {
        key: mos.key(1),
        timesteps: [200, 600],
      });
      holds(mean > 0 && Number.isFinite(mean), `an error of ${mean}`);
      return mean.toPrecision(4);
    },
    "a single file holds the whole model": async () => {
      const file = collected();
      await mos.saveSingleFile(file.to, base);
      const read = await mos.loadSingleFile(file.blob(), {
        tokenizer: folder.replace(/\/*$/, "/tokenizer"),
      });
      const a = await pictureDigest(await draw(read, "a red fox"));
      equal(a, await pictureDigest(await draw(base, "a red fox")), "pictures");
      mos.disposeModel(read);
    },
  };
  return Object.entries(list).map(([name, run]) => ({ name, run }));
}
