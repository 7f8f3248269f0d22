/**
 * A1111's prompts in the commands: `<lora:NAME:X>`, weights and chunks in
 * layouts with regions, and what evaluate makes of them.
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { runCommand } from "../../src/cli/command.ts";
import { evaluateCommand } from "../../src/cli/evaluate.ts";
import {
  calledConcepts,
  foreignSyntax,
  loraTags,
} from "../../src/cli/prompts.ts";
import { sampleCommand } from "../../src/cli/sample.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { decodePng, encodePng } from "../../src/io/png.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { fixturePath, inFolder } from "../helpers.ts";

const LORA = fixturePath("lora/edlora_official.safetensors");

/** Runs a command silently. */
async function run<T>(
  command: Parameters<typeof runCommand<T>>[0],
  args: readonly string[],
) {
  const { log, error } = console;
  const out: string[] = [], wrong: string[] = [];
  console.log = (text) => void out.push(String(text));
  console.error = (text) => void wrong.push(String(text));
  try {
    const code = await runCommand(command, args);
    return { code, out: out.join("\n"), wrong: wrong.join("\n") };
  } finally {
    Object.assign(console, { log, error });
  }
}

/** What sample draws, or why it does not. */
async function draw(folder: string, ...args: string[]) {
  const out = `${folder}/drawn`;
  const { code, wrong } = await run(sampleCommand, [
    ...["--model", fixturePath("tiny-sd"), "--backend", "wasm"],
    ...["--steps", "2", "--size", "32x32", "--out", out, ...args],
  ]);
  const picture = code === 0
    ? new Uint8Array(
      await crypto.subtle.digest(
        "SHA-256",
        // The prompt stands in the file as well.
        decodePng(await Deno.readFile(`${out}/000.png`)).data.slice(),
      ),
    ).toHex()
    : "";
  return { code, wrong, picture };
}

Deno.test("LoRA tags are taken out of a prompt", () => {
  const cases: [string, string, [string, number][]][] = [
    ["a fox", "a fox", []],
    ["a fox <lora:rex:0.8>", "a fox", [["rex", 0.8]]],
    ["<lora:rex>, a fox", ", a fox", [["rex", 1]]],
    ["<lyco:rex:2> a fox", "a fox", [["rex", 2]]],
    ["a <lora:my style v2:-1.5> fox", "a fox", [["my style v2", -1.5]]],
    ["a fox <LORA:A:1><lora:b:.5>, night", "a fox, night", [["A", 1], [
      "b",
      0.5,
    ]]],
    ["a <rex1> fox < lora:x:1>", "a <rex1> fox < lora:x:1>", []],
  ];
  for (const [prompt, text, tags] of cases) {
    const found = loraTags(prompt);
    assertEquals(found.text, text);
    assertEquals(found.tags.map(({ name, alpha }) => [name, alpha]), tags);
  }
  for (
    const bad of ["<lora:rex:>", "<lora:rex:x>", "<lora:rex:1:0.5>"]
  ) assertThrows(() => loraTags(bad), Error, "one number X");
});

Deno.test("what other programs do with a prompt is said not to be done", () => {
  const cases: [string, string[]][] = [
    ["a (fox:1.5), [red] \\[x\\] BREAK night, R AND D", ["AND"]],
    ["a [fox:owl:0.5]", ["[fox:owl:0.5]"]],
    ["a [fox:10] and [owl|fox]", ["[fox:10]", "[owl|fox]"]],
    ["{snow|rain} on __place__", ["{snow|rain}", "__place__"]],
    ["embedding:easynegative", ["embedding:easynegative"]],
    ["a fox, [a (red:1.2) owl], photo_of__x", []],
  ];
  for (const [prompt, expected] of cases) {
    const lines = foreignSyntax([prompt, prompt], "a1111");
    assertEquals(lines.map((line) => line.split('"')[1]), expected);
    assertEquals(foreignSyntax([prompt], "plain"), []);
  }
});

Deno.test("tags find files by name", () =>
  inFolder(async (folder) => {
    for (const name of ["Rex.safetensors", "a b.pt", "owl.safetensors"]) {
      await Deno.writeTextFile(`${folder}/${name}`, "");
    }
    await Deno.mkdir(`${folder}/dir.safetensors`);
    const { tags } = loraTags("<lora:rex:0.5> <lora:a b:2>");
    assertEquals(await calledConcepts(tags, [], folder), [
      { path: `${folder}/Rex.safetensors`, alpha: 0.5, name: "Rex" },
      { path: `${folder}/a b.pt`, alpha: 2, name: "a b" },
    ]);
    // A file that is given comes first, by its own name too.
    const given = [{ path: "x/rex.safetensors" }, { path: "y", name: "a b" }];
    assertEquals(await calledConcepts(tags, given, folder), [
      { ...given[0], alpha: 0.5 },
      { ...given[1], alpha: 2 },
    ]);
    const refused = async (
      prompt: string,
      concepts: Parameters<typeof calledConcepts>[1],
      message: string,
    ) =>
      await assertRejects(
        () => calledConcepts(loraTags(prompt).tags, concepts, folder),
        Error,
        message,
      );
    // With its ending, in a folder below, and by that folder.
    await Deno.mkdir(`${folder}/more/old`, { recursive: true });
    await Deno.writeTextFile(`${folder}/more/old/elk.pt`, "");
    for (const written of ["elk", "elk.pt", "more/old/elk"]) {
      assertEquals(
        await calledConcepts(loraTags(`<lora:${written}>`).tags, [], folder),
        [{ path: `${folder}/more/old/elk.pt`, alpha: 1, name: "elk" }],
      );
    }
    await refused("<lora:fox:1>", [], "with a file fox.safetensors, got Rex");
    await refused("<lora:dir:1>", [], "with a file dir.safetensors");
    await refused("<lora:owl:1> <lora:owl:2>", [], "each LoRA once");
    await refused(
      "<lora:rex:1>",
      [{ path: "rex.safetensors", alpha: 0.5 }],
      "one strength, got another for rex.safetensors",
    );
    await refused(
      "<lora:rex:1> <lora:rex:1>",
      [{ path: "rex.safetensors" }],
      "one strength",
    );
    await refused(
      "<lora:rex:1>",
      [{ path: "a/rex.safetensors" }, { path: "b/rex.pt" }],
      "one file of that name",
    );
    await Deno.writeTextFile(`${folder}/REX.pt`, "");
    // As it is written it is one of them, without regard to case two.
    assertEquals(
      (await calledConcepts(loraTags("<lora:REX:1>").tags, [], folder))[0].path,
      `${folder}/REX.pt`,
    );
    await refused("<lora:rEx:1>", [], "one file of that name");
  }));

Deno.test("a tag is the same as --concept with a strength", () =>
  inFolder(async (folder) => {
    await selectBackend("wasm");
    await Deno.mkdir(`${folder}/loras`);
    await Deno.copyFile(LORA, `${folder}/loras/potter.safetensors`);
    await Deno.copyFile(LORA, `${folder}/potter.safetensors`);
    const file = `${folder}/potter.safetensors`;
    const phrase = "a <potter1> <potter2> in snow";
    const without = await draw(folder, "--prompt", phrase, "--concept", file);
    const half = await draw(
      folder,
      ...["--prompt", phrase, "--concept", `${file},alpha=0.25`],
    );
    assertEquals([without.code, half.code], [0, 0], half.wrong);
    assert(half.picture !== without.picture);
    const given = await draw(
      folder,
      ...["--prompt", `${phrase} <lora:potter:0.25>`, "--concept", file],
    );
    assertEquals(given.picture, half.picture, given.wrong);
    const found = await draw(
      folder,
      ...["--prompt", `${phrase} <lora:Potter:0.25>`],
      ...["--lora-folder", `${folder}/loras`],
    );
    assertEquals(found.picture, half.picture, found.wrong);
    const plain = await draw(
      folder,
      ...["--prompt", "a fox <lora:potter:1>", "--syntax", "plain"],
    );
    assert(
      plain.wrong.includes("unknown concept <lora:potter:1>"),
      plain.wrong,
    );
    const alone = await draw(folder, "--prompt", "a fox <lora:potter:1>");
    assert(
      alone.wrong.includes(
        "Cannot draw <lora:potter:1>: expected --concept FILE or --lora-folder",
      ),
      alone.wrong,
    );
    const negative = await draw(
      folder,
      ...["--prompt", "a fox", "--negative", "<lora:potter:1>"],
      ...["--concept", file],
    );
    assert(
      negative.wrong.includes("LoRA tags in the prompt only"),
      negative.wrong,
    );
    const missing = await draw(
      folder,
      ...["--prompt", "a fox <lora:potter:1>", "--lora-folder", "/nowhere"],
    );
    assertEquals(missing.code, 1);
    assert(missing.wrong.includes("/nowhere"), missing.wrong);
  }));

Deno.test("weights, chunks and BREAK count in the prompts of regions", () =>
  inFolder(async (folder) => {
    await selectBackend("wasm");
    const layout = `${folder}/scene.json`;
    const scene = async (prompt: string, region: string, syntax = "a1111") => {
      const box = { top: 0, left: 0, bottom: 1, right: 0.5 };
      await Deno.writeTextFile(
        layout,
        JSON.stringify({ prompt, syntax, regions: [{ box, prompt: region }] }),
      );
      const drawn = await draw(folder, "--layout", layout);
      assertEquals(drawn.code, 0, drawn.wrong);
      return drawn;
    };
    const words = new Array(90).fill("cat").join(" ");
    const plain = await scene("two animals", "a dog");
    // One chunk beside two, the longer on either side.
    const long = await scene("two animals", `${words} dog`);
    assert(long.wrong.includes("is read in 2 chunks of up to 75 tokens"));
    const tail = await scene("two animals", `${words} owl`);
    const swapped = await scene(`${words} dog`, "a dog");
    const other = await scene(`${words} owl`, "a dog");
    const both = await scene(`${words} dog`, `${words} dog`);
    const weighted = await scene("two animals", "a (dog:1.6)");
    const broken = await scene("two animals", "a BREAK dog");
    const pictures = [
      ...[plain, long, tail, swapped, other, both, weighted, broken],
    ].map(({ picture }) => picture);
    assertEquals(new Set(pictures).size, pictures.length);
    // The same words, written otherwise.
    assertEquals(
      (await scene("two animals", "a (dog:1)")).picture,
      plain.picture,
    );
    assertEquals(
      (await scene("two animals", "a \\(dog\\)")).picture,
      (await scene("two animals", "a (dog)", "plain")).picture,
    );
    // Plain text ends at the limit, and it is said.
    const cut = await scene("two animals", `${words} dog`, "plain");
    const same = await scene("two animals", `${words} owl`, "plain");
    assertEquals(cut.picture, same.picture);
    assert(cut.wrong.includes("the limit is 75; cut off:"), cut.wrong);
  }));

Deno.test("evaluate scores a layout's words without its syntax", () =>
  inFolder(async (folder) => {
    const { clip } = await writeTinyWorld(folder);
    const images = `${folder}/drawn`;
    await Deno.mkdir(images);
    const data = Uint8Array.from({ length: 64 * 64 * 3 }, (_, i) => i % 251);
    await Deno.writeFile(
      `${images}/000.png`,
      encodePng({ width: 64, height: 64, channels: 3, data }),
    );
    const score = async (
      layout: Record<string, unknown>,
      ...args: string[]
    ) => {
      await Deno.writeTextFile(
        `${images}/layout.json`,
        JSON.stringify({ count: 1, ...layout }),
      );
      const { code, out, wrong } = await run(evaluateCommand, [
        ...["--images", images, "--clip", clip, "--no-prefix", "--json"],
        ...["--backend", "wasm", ...args],
      ]);
      assertEquals(code, 0, wrong);
      return { ...JSON.parse(out).pictures[0], wrong };
    };
    const box = { top: 0, left: 0, bottom: 1, right: 0.5 };
    const plain = await score({ prompt: "a red fox on grass" });
    const a1111 = await score({
      prompt: "a ((red)) (fox:1.4) BREAK on grass <lora:rex:0.8>",
    });
    assertEquals([a1111.prompt, a1111.text], [plain.prompt, plain.text]);
    const literal = await score({
      prompt: "a (red) fox on grass",
      syntax: "plain",
    });
    assertEquals(literal.prompt, "a (red) fox on grass");
    const regions = [{ box, prompt: "a [red] (fox:0.5)" }];
    const { regions: [region] } = await score(
      { prompt: "animals", regions },
      "--regions",
    );
    assertEquals(region.prompt, "a red fox");
    // Words that no prompt has are said, once for each.
    const { wrong } = await score(
      { prompt: "a <rex1> fox" },
      ...["--say", "<rex1>=red", "--say", "<tom1>=cat"],
    );
    assert(!wrong.includes("<rex1>"), wrong);
    assert(
      wrong.includes('--say changes nothing: no prompt has "<tom1>"'),
      wrong,
    );
  }));
