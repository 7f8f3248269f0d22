import { assert, assertEquals, assertThrows } from "@std/assert";
import { runCommand } from "../../src/cli/command.ts";
import { sampleCommand } from "../../src/cli/sample.ts";
import { key } from "../../src/core/random.ts";
import { disposeConcept, initConcept } from "../../src/customize/concept.ts";
import { saveConcept } from "../../src/formats/concept_file.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { parseLayout } from "../../src/diffusion/layout.ts";
import { textsOf } from "../../src/io/png_text.ts";
import { decodePng, encodePng } from "../../src/io/png.ts";
import { disposeModel } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { fixturePath } from "../helpers.ts";

/** Runs the command silently. */
async function run(args: readonly string[]) {
  const { log, error } = console;
  const said: string[] = [];
  const wrong: string[] = [];
  console.log = (text) => said.push(String(text));
  console.error = (text) => wrong.push(String(text));
  try {
    return {
      code: await runCommand(sampleCommand, args),
      said,
      wrong: wrong.join("\n"),
    };
  } finally {
    Object.assign(console, { log, error });
  }
}

Deno.test("the command line becomes a layout's fields", () => {
  const command = sampleCommand.parse([
    ...["--prompt", "a cat", "--size", "64x96", "--seed", "3"],
    ...["--concept", "a.safetensors", "--concept", "b.safetensors,alpha=0.5"],
    ...["--network", "sketch=out/a=b", "--adapters", "switch"],
  ])!;
  assertEquals(command.prompt, "a cat");
  assertEquals(command.seed, 3);
  assertEquals(command.size, { width: 64, height: 96 });
  assertEquals(command.steps, undefined);
  assertEquals(command.concept, [
    { path: "a.safetensors" },
    { path: "b.safetensors", alpha: 0.5 },
  ]);
  assertEquals(command.network, [["sketch", "out/a=b"]]);
});

const bad: [string, string[], string][] = [
  ["nothing to draw", [], "--prompt, --layout or --from, got none"],
  ["unknown", ["--prompt", "x", "--prompts", "y"], "--prompts"],
  ["size", ["--prompt", "x", "--size", "64*64"], "--size such as 512"],
  ["no size", ["--prompt", "x", "--size", "0"], "--size such as 512 or"],
  ["a side of none", ["--prompt", "x", "--size", "32x0"], "--size such as 512"],
  ["a seed", ["--prompt", "x", "--seed", "-1"], "--seed a whole number from 0"],
  ["seeds", ["--prompt", "x", "--seed", "1,1"], "different values for --seed"],
  [
    "steps",
    ["--prompt", "x", "--steps", "1001"],
    "--steps a whole number from",
  ],
  ["strength", ["--prompt", "x", "--strength", "0.5"], "strength: needs init"],
  [
    "no strength",
    ["--prompt", "x", "--strength", "0"],
    "--strength a number f",
  ],
  ["a mask", ["--prompt", "x", "--mask", "a.png"], "mask: needs init"],
  [
    "an architecture",
    ["--prompt", "x", "--model", "sd15"],
    "--model with weig",
  ],

  [
    "number",
    ["--prompt", "x", "--steps", "many"],
    "--steps a whole number from 1",
  ],
  ["network", ["--prompt", "x", "--network", "sketch"], "NAME=FOLDER"],
  ["adapters", ["--prompt", "x", "--adapters", "mix"], "sum, region, switch"],
  [
    "adapters of no concept",
    ["--prompt", "x", "--adapters", "switch"],
    "expected --concept with --adapters switch, got none",
  ],
  [
    "a network twice",
    ["--prompt", "x", "--network", "sketch=a", "--network", "sketch=b"],
    "expected one --network sketch, got a and b",
  ],
];

for (const [name, args, message] of bad) {
  Deno.test(`a bad command line is refused: ${name}`, () => {
    assertThrows(() => sampleCommand.parse(args), Error, message);
  });
}

const left = { top: 0, left: 0, bottom: 1, right: 0.5 };
const region = { box: left, prompt: "a fox", concepts: ["fox"] };
const sketch = {
  type: "t2i_adapter",
  network: "sketch",
  image: { regions: "outline" },
};
const undrawable: [string, Record<string, unknown>, string[], string][] = [
  [
    "a box off the canvas",
    { regions: [{ ...region, box: { ...left, right: 2 } }] },
    [],
    "regions.0.box.right: 2 is off the canvas",
  ],
  [
    "a change that does not fit",
    {},
    ["--guidance", "5", "--strength", "0.5"],
    "scene.json with --guidance, --strength: expected a layout that can be drawn",
  ],
  [
    "a mask that is not there",
    { regions: [{ mask: { file: "none.png" }, prompt: "a fox" }] },
    [],
    "regions.0.mask.file: ",
  ],
  [
    "a network that no condition names",
    { regions: [region], conditions: [sketch] },
    ["--network", "sketch=.", "--network", "edges=."],
    "names that conditions of the layout have (sketch), got edges",
  ],
  [
    "a network without conditions",
    {},
    ["--network", "edges=."],
    "names that conditions of the layout have (none), got edges",
  ],
  [
    "adapters per region that no region names",
    { regions: [{ ...region, concepts: [] }] },
    ["--concept", "fox", "--adapters", "region"],
    'expected regions with "concepts", got none',
  ],
  [
    "everywhere what belongs to a region",
    { regions: [region] },
    ["--concept", "fox", "--adapters", "sum"],
    'expected regions without "concepts" (--adapters region), got fox',
  ],
];

for (const [name, fields, args, message] of undrawable) {
  Deno.test(`refused before a model is loaded: ${name}`, async () => {
    const folder = await Deno.makeTempDir();
    try {
      const layout = `${folder}/scene.json`;
      await Deno.writeTextFile(
        layout,
        JSON.stringify({ prompt: "x", ...fields }),
      );
      await Deno.writeTextFile(`${folder}/fox`, "");
      const { code, wrong } = await run([
        ...["--model", `${folder}/no/model/here`, "--backend", "wasm"],
        ...["--layout", layout, "--out", `${folder}/out`],
        ...args.map((arg) => arg === "fox" ? `${folder}/fox` : arg),
      ]);
      assertEquals(code, 1);
      assert(wrong.includes(message), wrong);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}

Deno.test("pictures of an earlier sample do not stay beside a new layout", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const out = `${folder}/out`;
    const draw = async (layout: Record<string, unknown>) => {
      await Deno.writeTextFile(
        `${folder}/scene.json`,
        JSON.stringify({ prompt: "a cat", steps: 1, ...layout }),
      );
      const { code, wrong } = await run([
        ...["--model", fixturePath("tiny-sd"), "--backend", "wasm"],
        ...["--layout", `${folder}/scene.json`, "--out", out],
      ]);
      assertEquals(code, 0, wrong);
      return [...Deno.readDirSync(out)].map(({ name }) => name).sort();
    };
    await Deno.mkdir(out);
    const others = ["005.png", "0002.png", "2.png", "002.jpg"];
    for (const name of others) await Deno.writeTextFile(`${out}/${name}`, "");
    assertEquals(
      await draw({ count: 5 }),
      [
        ...["000.png", "001.png", "002.png", "003.png", "004.png"],
        ...others,
        "layout.json",
      ].sort(),
    );
    // One that the new layout looks at has to stay.
    const mask = { file: "out/003.png" };
    const dark = new Uint8Array(64 * 64).fill(255, 0, 64 * 32);
    await Deno.writeFile(
      `${out}/003.png`,
      encodePng({ width: 64, height: 64, channels: 1, data: dark }),
    );
    assertEquals(
      await draw({
        $schema: "./layout.schema.json",
        regions: [{ mask, prompt: "a dog" }],
      }),
      ["000.png", "003.png", ...others, "layout.json"].sort(),
    );
    const written = JSON.parse(await Deno.readTextFile(`${out}/layout.json`));
    assertEquals(written.count, 1);
    // There is no such schema beside what was written.
    assertEquals(written.$schema, undefined);
    const $schema = "https://example.org/layout.schema.json";
    await draw({ $schema });
    assertEquals(
      JSON.parse(await Deno.readTextFile(`${out}/layout.json`)).$schema,
      $schema,
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the published schema is the library's, the example fits", async () => {
  const { code, said } = await run(["--schema"]);
  assertEquals(code, 0);
  const read = async (path: string) =>
    JSON.parse(
      await Deno.readTextFile(new URL(`../../${path}`, import.meta.url)),
    );
  assertEquals(
    await read("examples/layout.schema.json"),
    JSON.parse(said[0]),
    "write it again: deno task sample --schema",
  );
  const scene = await read("examples/scene.json");
  assertEquals(scene.$schema, "./layout.schema.json");
  assertEquals(parseLayout(scene).regions.length, 2);
});

Deno.test("sample draws a layout with adapters per region", async () => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  const base = await tinySd();
  for (const name of ["fox", "owl"]) {
    const concept = await initConcept(base, {
      name,
      classWord: "cat",
      key: key(1),
      severalTokens: "mean",
    });
    await saveConcept(`${folder}/${name}.safetensors`, concept, base);
    disposeConcept(concept);
  }
  disposeModel(base);
  const data = new Uint8Array(64 * 48).fill(255, 0, 64 * 24);
  await Deno.writeFile(
    `${folder}/top.png`,
    encodePng({ width: 64, height: 48, channels: 1, data }),
  );
  const scene = {
    prompt: "two animals",
    size: { width: 64, height: 48 },
    steps: 2,
    regions: [
      {
        mask: { file: "top.png" },
        prompt: "a <fox1> <fox2>",
        concepts: ["fox"],
      },
      {
        box: { top: 0.5, left: 0, bottom: 1, right: 1 },
        prompt: "an <owl1> <owl2>",
        concepts: ["owl"],
      },
    ],
    conditions: [{
      type: "t2i_adapter",
      network: "sketch",
      image: { regions: "outline" },
    }],
  };
  const write = (layout: unknown) =>
    Deno.writeTextFile(`${folder}/scene.json`, JSON.stringify(layout));
  await write(scene);
  const common = [
    ...["--model", fixturePath("tiny-sd"), "--backend", "wasm"],
    ...["--layout", `${folder}/scene.json`, "--out", `${folder}/out`],
    ...["--concept", `${folder}/fox.safetensors`],
    ...["--concept", `${folder}/owl.safetensors`],
  ];
  const sketch = [
    "--network",
    `sketch=${fixturePath("t2i_adapter/adapter1")}`,
  ];
  // Regions name concepts, so that adapters act per region unasked.
  const first = await run([...common, ...sketch]);
  assertEquals(first.code, 0, first.wrong);
  assertEquals(first.said, [`${folder}/out/000.png`]);
  const bytes = await Deno.readFile(`${folder}/out/000.png`);
  const picture = decodePng(bytes);
  assertEquals([picture.width, picture.height], [64, 48]);
  // What was written draws the same picture, from another folder.
  const again = await run([
    ...common.slice(0, -8),
    ...common.slice(-4),
    ...sketch,
    ...["--adapters", "region"],
    ...["--layout", `${folder}/out/layout.json`, "--out", `${folder}/again`],
  ]);
  assertEquals(again.code, 0, again.wrong);
  assertEquals(await Deno.readFile(`${folder}/again/000.png`), bytes);
  // So does the picture itself.
  const from = await run([
    ...common.slice(0, 4),
    ...common.slice(-4),
    ...sketch,
    ...["--from", `${folder}/out/000.png`, "--out", `${folder}/from`],
    "--grid",
  ]);
  assertEquals(from.code, 0, from.wrong);
  assertEquals(from.said[1], `${folder}/from.grid.png`);
  assertEquals(await Deno.readFile(`${folder}/from/000.png`), bytes);
  const sheet = decodePng(await Deno.readFile(`${folder}/from.grid.png`));
  assert(sheet.width >= 64 && sheet.height >= 48);
  const { parameters } = Object.fromEntries(textsOf(bytes));
  assert(parameters.startsWith(`${scene.prompt}\n`), parameters);
  assert(
    /Steps: \d+, Sampler: .*, Size: 64x48, Model: tiny-sd/.test(parameters),
  );

  const refuse = async (args: string[], code: number, message: string) => {
    const result = await run([...common, ...args]);
    assertEquals(result.code, code);
    assert(result.wrong.includes(message), result.wrong);
  };
  await refuse([], 1, 'conditions.0.network: unknown network "sketch"');
  await refuse(
    ["--adapters", "switch"],
    1,
    "expected a layout without regions and conditions, got 2 and 1",
  );
  await refuse(["--concept", "none.safetensors"], 1, "none.safetensors");
  await refuse(
    ["--concept", `${folder}/fox.safetensors`],
    1,
    "different names",
  );
  await write({ ...scene, conditions: [], prompt: "<dog1>" });
  await refuse([], 1, "prompt: unknown concept <dog1> (known: <fox1>");
  await write({ ...scene, conditions: [], regions: [scene.regions[0]] });
  await refuse(
    [],
    1,
    "a region for each --concept that names it, got none for owl",
  );
  await write({
    ...scene,
    regions: [{ ...scene.regions[0], concepts: ["x"] }],
  });
  await refuse(
    ["--adapters", "region"],
    1,
    "Cannot read regions.0.concepts: expected fox, owl, got x",
  );
  await Deno.remove(folder, { recursive: true });
});
