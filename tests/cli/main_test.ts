import * as tf from "@tensorflow/tfjs";
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { main } from "../../src/cli/main.ts";
import { decodePng, encodePng } from "../../src/io/png.ts";
import { openSafetensors } from "../../src/io/safetensors.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

/** What a command said and how it ended. */
interface Said {
  code: number;
  out: string;
  err: string;
}

/** Runs the command line in place; what it says is kept. */
async function run(...args: string[]): Promise<Said> {
  const kept = { log: console.log, error: console.error };
  const out: string[] = [];
  const err: string[] = [];
  console.log = (...parts: unknown[]) => void out.push(parts.join(" "));
  console.error = (...parts: unknown[]) => void err.push(parts.join(" "));
  try {
    const code = await main(args);
    return { code, out: out.join("\n"), err: err.join("\n") };
  } finally {
    Object.assign(console, kept);
  }
}

/** Runs a command that must succeed. */
async function fine(...args: string[]): Promise<string> {
  const { code, out, err } = await run(...args);
  assertEquals(code, 0, err);
  return out;
}

const COMMANDS = ["train", "fuse", "sample", "evaluate", "convert", "inspect"];

Deno.test("every command has help with options, exit codes and examples", async () => {
  const overview = await fine("--help");
  for (const name of COMMANDS) {
    assertStringIncludes(overview, `  ${name} `);
    const help = await fine(name, "--help");
    assertMatch(help, new RegExp(`^deno task ${name} `));
    assertStringIncludes(help, "Exit code: 0");
    assertMatch(help, /Examples:\n {2}deno task/);
    // A line that is too long breaks in a terminal.
    for (const line of help.split("\n")) assert(line.length <= 80, line);
  }
});

Deno.test("--version says which version this is", async () => {
  const config = new URL("../../deno.json", import.meta.url);
  const { version } = JSON.parse(await Deno.readTextFile(config));
  assertEquals(await fine("--version"), `Mix-of-Show ${version}`);
});

Deno.test("bad arguments end with 2 and say what was expected", async () => {
  const cases: [args: string[], says: string][] = [
    [
      ["paint"],
      "expected train, fuse, sample, evaluate, convert, memory, ",
    ],
    [["train", "--nmae", "x"], "a known option (--help), got --nmae"],
    [["train"], "expected --name"],
    [["train", "--name", "a b"], "letters, digits"],
    [["train", "--name", "x", "--class", "dog"], "expected --images"],
    [
      ["train", "--name=x", "--images=.", "--keep-tokens", "1"],
      "--shuffle-captions with --keep-tokens",
    ],
    [
      ["train", "--name=x", "--images=.", "--prior-weight", "1"],
      "--prior with --prior-weight",
    ],
    [["train", "--name", "x", "--name", "y"], "one --name"],
    [["train", "--name"], "a value for --name"],
    [
      ["train", "--name", "x", "--class", "c", "--images", ".", "--steps", "0"],
      "--steps a whole number from 1",
    ],
    [
      ["train", "--name", "x", "--class", "c", "--images", ".", "--lr-unet=-1"],
      "--lr-unet a number from 0",
    ],
    [
      ["train", "--name=x", "--class=c", "--images=.", "--method", "magic"],
      "--method textual-inversion",
    ],
    [["fuse"], "--concept FILE"],
    [["fuse", "--concept", "a,alpha=much"], "a number for alpha"],
    [["fuse", "--concept", "a", "--backend", "abacus"], "--backend auto"],
    [["fuse", "stray"], "options only"],
    [["evaluate"], "--images"],
    [["evaluate", "--images", ".", "--say", "x"], "--say OLD=NEW"],
    [["convert", "a"], "IN and OUT"],
    [["convert", "a", "b"], "--to kohya"],
    [["convert", "a", "b", "--to", "jpeg"], "--to kohya"],
    [["convert", "a", "b.ckpt", "--to", "kohya"], "a .safetensors file to wri"],
    [["convert", "a", "b.bin", "--to", "peft"], "a folder or a .safetensors"],
    [["convert", "a", "b.safetensors", "--to", "folder"], "a folder to write"],
    [
      ["fuse", "--concept", "a", "--single-file", "x.ckpt"],
      "--single-file with the ending .safetensors, got x.ckpt",
    ],
    [["fuse", "--concept", "a", "--model", "sd15"], "--model with weights"],
    [
      ["train", "--name=x", "--images=.", "--out", "x.pt"],
      "--out with the ending .safetensors, got x.pt",
    ],
    [["evaluate", "--images", ".", "--out", "x.csv"], "the ending .json"],
    [["convert", "a", "b", "--to", "kohya", "--rank", "4"], "--difference-to"],
    [["inspect"], "PATH"],
    [["inspect", "a", "b"], "PATH"],
  ];
  for (const [args, says] of cases) {
    const { code, err, out } = await run(...args);
    assertEquals(code, 2, args.join(" "));
    assertEquals(out, "");
    assertStringIncludes(err, "Cannot ");
    assertStringIncludes(err, says);
  }
  assertEquals((await run()).code, 2);
  assertEquals((await run("-h")).code, 0);
});

Deno.test("a mistyped path is not looked up on the hub", async () => {
  const folder = await Deno.makeTempDir({ dir: "." });
  try {
    const { code, err } = await run(
      ...["inspect", `${folder.replace(/.*[\\/]/, "")}/micr`],
    );
    assertEquals(code, 1);
    assertMatch(err, /^Cannot find .*\/micr: expected a file or folder in /);
    assertStringIncludes(err, "/micr@main is one of the Hugging Face hub");
  } finally {
    await Deno.remove(folder);
  }
});

/** Writes pictures of one colour, a caption and a mask. */
async function paint(folder: string, rgb: number[]): Promise<void> {
  await Deno.mkdir(`${folder}/masks`, { recursive: true });
  for (let i = 0; i < 2; i++) {
    const data = new Uint8Array(64 * 64 * 3);
    for (let p = 0; p < 64 * 64; p++) {
      const inside = p % 64 > 16 && p % 64 < 48;
      data.set(inside ? rgb : [30 * i, 200, 90], 3 * p);
    }
    const picture = { width: 64, height: 64, channels: 3, data };
    await Deno.writeFile(`${folder}/${i}.png`, encodePng(picture));
    await Deno.writeFile(
      `${folder}/masks/${i}.png`,
      encodePng({
        ...picture,
        channels: 1,
        data: Uint8Array.from(
          { length: 64 * 64 },
          (_, p) => p % 64 > 16 && p % 64 < 48 ? 255 : 0,
        ),
      }),
    );
  }
  await Deno.writeTextFile(`${folder}/0.txt`, "a {} on grass\n");
}

Deno.test("pictures → concepts → fused model → picture with regions → scores", async (t) => {
  const folder = await Deno.makeTempDir();
  const at = (name: string) => `${folder}/${name}`;
  try {
    const { model, clip } = await (async () => {
      const { selectBackend } = await import("../../src/core/backend.ts");
      await selectBackend("wasm");
      return await writeTinyWorld(folder);
    })();
    const base = ["--model", model, "--backend", "wasm"];
    const tensors = tf.memory().numTensors;

    await t.step("train", async () => {
      for (
        const [name, word, rgb] of [
          ["rex", "fox", [250, 120, 20]],
          ["tom", "cat", [60, 60, 220]],
        ] as const
      ) {
        await paint(at(name), [...rgb]);
        const out = await fine(
          "train",
          ...base,
          ...["--name", name, "--class", word, "--images", at(name)],
          ...["--steps", "3", "--batch", "2", "--rank", "2"],
          ...["--preset", "official", "--out", at(`${name}.safetensors`)],
        );
        assertStringIncludes(out, `as <${name}1> <${name}2>`);
        assertStringIncludes(out, "2 pictures of 64×64");
      }
      const file = await openSafetensors(at("rex.safetensors"));
      assertEquals(file.metadata["mix_of_show.class_word"], "fox");
      file.close();
      // The state of the run is gone with the run.
      const left = [...Deno.readDirSync(folder)].map(({ name }) => name);
      assert(!left.some((name) => name.includes("state")), left.join());
    });

    await t.step(
      "a run that was stopped is continued, or begun anew",
      async () => {
        const args = [
          "train",
          ...base,
          ...["--name", "rex", "--class", "fox", "--images", at("rex")],
          ...["--batch", "1", "--method", "textual-inversion"],
          ...["--out", at("again.safetensors")],
        ];
        // Another run's state in the place of this one's.
        await Deno.writeTextFile(at("again.state.safetensors"), "nothing");
        const broken = await run(...args, "--steps", "2");
        assertEquals(broken.code, 1);
        assertStringIncludes(broken.err, "again.state.safetensors");
        // A refused run takes nothing away.
        const [task, ...others] = args;
        const missing = ["--model", at("none"), "--steps", "2", "--fresh"];
        const refused = await run(
          task,
          ...missing,
          ...others.slice(others.indexOf("--backend")),
        );
        assertEquals(refused.code, 1);
        const kept = await Deno.readTextFile(at("again.state.safetensors"));
        assertEquals(kept, "nothing");
        await fine(...args, "--steps", "2", "--fresh");
      },
    );

    const concepts = ["rex", "tom"].flatMap((name) => [
      "--concept",
      at(`${name}.safetensors`),
    ]);

    await t.step("fuse", async () => {
      const said = await fine(
        "fuse",
        ...base,
        ...concepts,
        ...["--steps", "2", "--out", at("fused")],
        ...["--single-file", at("single.safetensors")],
      );
      assertStringIncludes(said, "rex: <rex1> <rex2>");
      assertMatch(said, /feature error left: [\d.]+ % \(weight fusion: /);
      await fine(
        "fuse",
        ...base,
        ...concepts.map((c) => c.replace("rex.safetensors", "$&,alpha=0.5")),
        ...["--method", "weight", "--lambda", "0.6", "--out", at("average")],
      );
    });

    await t.step("inspect", async () => {
      const said = await fine("inspect", at("fused"));
      assertStringIncludes(said, "model folder");
      assertStringIncludes(said, "tokens: <rex1>, <rex2>, <tom1>, <tom2>");
      const { kind, facts } = JSON.parse(
        await fine(
          "inspect",
          ...[at("rex.safetensors"), "--json", "--model", model],
        ),
      );
      assertEquals(kind, "LoRA");
      assertEquals(facts.dialect, "official");
      assertEquals(facts.rank, 2);
      assertEquals(Object.keys(facts.tokens), ["<rex1>", "<rex2>"]);
      assertStringIncludes(
        await fine("inspect", at("single.safetensors"), "--keys"),
        "model in a single file",
      );
    });

    await t.step("sample with regions", async () => {
      await Deno.writeTextFile(
        at("scene.json"),
        JSON.stringify({
          prompt: "two animals",
          steps: 2,
          count: 2,
          regions: [
            {
              box: { top: 0, left: 0, bottom: 1, right: 0.5 },
              prompt: "a <rex1> <rex2>",
            },
            {
              box: { top: 0, left: 0.5, bottom: 1, right: 1 },
              prompt: "a <tom1> <tom2>",
            },
          ],
        }),
      );
      await fine(
        "sample",
        ...["--model", at("fused"), "--backend", "wasm"],
        ...["--layout", at("scene.json"), "--out", at("drawn")],
      );
      const picture = decodePng(await Deno.readFile(at("drawn/001.png")));
      assertEquals([picture.width, picture.height], [64, 64]);
    });

    await t.step("evaluate", async () => {
      const args = [
        "evaluate",
        ...["--images", at("drawn"), "--clip", clip, "--backend", "wasm"],
        ...["--references", at("rex"), "--regions", "--no-prefix"],
      ];
      const unsaid = await run(...args);
      assertEquals(unsaid.code, 1);
      assertStringIncludes(unsaid.err, "--say");
      const report = JSON.parse(
        await fine(
          ...args,
          ...["--say", "<rex1> <rex2>=fox", "--say", "<tom1> <tom2>=cat"],
          ...["--json", "--out", at("scores.json")],
        ),
      );
      assertEquals(report.pictures.length, 2);
      for (const { text, image, regions, prompt } of report.pictures) {
        assertEquals(prompt, "two animals");
        assert(text >= 0 && text <= 2.5);
        assert(image >= 0 && image <= 1);
        assertEquals(
          regions.map((r: { prompt: string }) => r.prompt),
          ["a fox", "a cat"],
        );
      }
      const mean = report.pictures.reduce(
        (sum: number, p: { text: number }) => sum + p.text / 2,
        0,
      );
      assert(Math.abs(report.text.mean - mean) < 1e-12);
      assertEquals(
        JSON.parse(await Deno.readTextFile(at("scores.json"))),
        report,
      );
      assertStringIncludes(
        await fine(
          ...["evaluate", "--images", at("rex"), "--prompt", "a fox"],
          ...["--clip", clip, "--say", "{}=fox"],
        ),
        "text alignment ",
      );
    });

    await t.step("convert", async () => {
      const to = (...args: string[]) => fine("convert", ...args);
      const from = at("rex.safetensors");
      const held = await run(
        ...["convert", from, at("k.safetensors"), "--to", "kohya"],
        ...["--model", model],
      );
      assertEquals(held.code, 1);
      assertStringIncludes(held.err, "<rex1>");
      await to(
        ...[from, at("k.safetensors"), "--to", "kohya", "--model", model],
        "--without-tokens",
      );
      // A plain token has a place in a file of its own.
      const plain = at("again.safetensors");
      await to(
        ...[plain, at("t.safetensors"), "--to", "learned_embeds"],
        ...["--model", model],
      );
      assertStringIncludes(
        await fine("inspect", at("t.safetensors"), "--model", model),
        "dialect: learned_embeds",
      );
      await to(at("k.safetensors"), at("p"), "--to", "peft", "--model", model);
      assertStringIncludes(
        await fine("inspect", at("p"), "--model", model),
        "dialect: peft",
      );
      await fine(
        ...["sample", ...base, "--concept", at("k.safetensors"), "--steps=1"],
        ...["--prompt", "a fox", "--out", at("kohya")],
      );
      const nameless = await run(
        ...["fuse", ...base, "--concept", at("k.safetensors")],
        ...["--out", at("nameless")],
      );
      assertEquals(nameless.code, 1);
      assertStringIncludes(nameless.err, "trigger words or a class word");
      // A LoRA without tokens is called by its trigger.
      await fine(
        "fuse",
        ...base,
        ...["--concept", `${at("k.safetensors")},trigger=red fox,class=fox`],
        ...["--steps", "1", "--out", at("triggered")],
      );
      // Models, there and back.
      await to(at("single.safetensors"), at("back"), ...[
        "--to",
        "folder",
        "--tokenizer",
        at("model"),
      ]);
      await to(
        ...[at("fused"), at("plain"), "--to", "folder", "--without-tokens"],
      );
      const names = ["unet", "vae", "text_encoder"];
      for (const part of names) {
        const file = part === "text_encoder"
          ? "model"
          : "diffusion_pytorch_model";
        const path = `${part}/${file}.safetensors`;
        assertEquals(
          await tensorsOf(at(`back/${path}`)),
          await tensorsOf(at(`plain/${path}`)),
        );
      }
      const lora = await to(
        ...[at("average"), at("svd.safetensors"), "--to", "official"],
        ...["--difference-to", model, "--rank", "4"],
      );
      // Two LoRAs of rank 2: rank 4 holds their sum.
      assertMatch(lora, /0\.\d\d % of the difference left out/);
      const wrong = await run(
        ...["convert", at("fused"), at("x.safetensors"), "--to", "kohya"],
      );
      assertEquals(wrong.code, 1);
      assertStringIncludes(wrong.err, "--difference-to");
    });

    await t.step("what is wrong is said before work starts", async () => {
      await Deno.writeTextFile(at("file"), "");
      const concept = ["--concept", at("rex.safetensors")];
      const cut = await Deno.readFile(at("rex.safetensors"));
      await Deno.writeFile(
        at("cut.safetensors"),
        cut.subarray(0, cut.length - 100),
      );
      const cases: [args: string[], says: string][] = [
        [["fuse", "--concept", at("none")], `got ${at("none")}`],
        [["fuse", ...base, ...concept, "--out", at("file/x")], "write into"],
        [
          [
            "fuse",
            "--model",
            at("nowhere/at/all"),
            ...concept,
            "--out",
            at("o"),
          ],
          "org/name on the Hugging Face hub",
        ],
        [
          [
            "fuse",
            ...base,
            "--concept",
            at("cut.safetensors"),
            "--out",
            at("o"),
          ],
          "truncated",
        ],
        [
          ["fuse", ...base, ...concept, ...concept, "--out", at("o")],
          "different names",
        ],
        [
          [
            ...["train", ...base, "--name", "rex", "--class", "fox"],
            ...["--images", at("p"), "--out", at("o.safetensors")],
          ],
          "PNG, JPEG, WebP or AVIF pictures",
        ],
        [
          [
            ...["sample", "--model", at("fused"), "--backend", "wasm"],
            ...["--prompt", "a <nobody1>", "--out", at("o")],
          ],
          "unknown concept <nobody1>",
        ],
        [["evaluate", "--images", at("none")], `got ${at("none")}`],
        [["inspect", at("file")], at("file")],
      ];
      for (const [args, says] of cases) {
        const { code, err } = await run(...args);
        assertEquals(code, 1, `${args.join(" ")}: ${err}`);
        assertStringIncludes(err, says);
      }
    });

    assertEquals(tf.memory().numTensors, tensors);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

/** All tensors of a file, but for the token table's size. */
async function tensorsOf(path: string): Promise<Map<string, string>> {
  const file = await openSafetensors(path);
  const found = new Map<string, string>();
  for (const name of [...file.entries.keys()].sort()) {
    const { dtype, shape, data } = await file.read(name);
    const digest = await crypto.subtle.digest(
      "SHA-256",
      new Uint8Array(data),
    );
    found.set(name, `${dtype} ${shape} ${new Uint8Array(digest).toHex()}`);
  }
  file.close();
  return found;
}
