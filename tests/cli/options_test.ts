import { assert, assertEquals, assertThrows } from "@std/assert";
import { command } from "../../src/cli/command.ts";
import {
  anyText,
  BACKEND_OPTION,
  flag,
  folder,
  listOf,
  number,
  oneOf,
  optionName,
  optionTable,
  parsed,
  readTable,
  tableHelp,
  text,
  whole,
  withFile,
} from "../../src/cli/options.ts";

const TABLE = optionTable({
  images: { type: folder, needed: true, help: "pictures" },
  lrUnet: { type: number({ least: 0 }), default: 1e-4, help: "its rate" },
  guidance: { type: number(), help: "guidance" },
  seed: { type: whole(), help: "seed" },
  steps: { type: whole({ least: 1, most: 1000 }), help: "steps" },
  prompt: { type: text, many: true, help: "what to draw" },
  negative: { type: anyText, help: "what to stay away from" },
  layers: { type: oneOf(["attention", "all"]), help: "which" },
  values: { type: listOf(number()), help: "values" },
  size: {
    type: parsed("WxH", (_what, _name, found) => found.split("x").map(Number)),
    otherwise: "the model's",
    help: "size",
  },
  flips: { type: flag, help: "mirrored" },
  ...BACKEND_OPTION,
});

const read = (...args: string[]) =>
  readTable("try", ["--images", "in", ...args], TABLE)!;

Deno.test("a table gives values, defaults and nothing for the rest", () => {
  const values = read("--prompt", "a", "--prompt=b=c", "--flips");
  assertEquals(values, {
    images: "in",
    lrUnet: 1e-4,
    guidance: undefined,
    seed: undefined,
    steps: undefined,
    prompt: ["a", "b=c"],
    negative: undefined,
    layers: undefined,
    values: undefined,
    size: undefined,
    flips: true,
    backend: "auto",
  });
  // Types of the request come from the table.
  const rate: number = values.lrUnet;
  const layers: "attention" | "all" | undefined = values.layers;
  const list: readonly number[] | undefined = values.values;
  assertEquals([rate, layers, list], [1e-4, undefined, undefined]);
  assertEquals(read("--size", "4x6").size, [4, 6]);
  assertEquals(readTable("try", ["--help"], TABLE), undefined);
});

Deno.test("a value may be negative, and empty where that means something", () => {
  const values = read(
    ...["--guidance", "-1.5", "--seed", "-1", "--negative", ""],
    ...["--values", "-1,2,-3e-2"],
  );
  assertEquals(values.guidance, -1.5);
  assertEquals(values.seed, -1);
  assertEquals(values.negative, "");
  assertEquals(values.values, [-1, 2, -0.03]);
  assertEquals(read("--negative=").negative, "");
});

const bad: [args: string[], says: string][] = [
  [["--promt", "x"], "a known option (--help), got --promt"],
  [["-x"], "a known option (--help), got -x"],
  [["stray"], "options only (--help), got stray"],
  [["--seed"], "a value for --seed, got none"],
  [["--seed", "--flips"], "a value for --seed, got none"],
  [["--negative"], "a value for --negative, got none"],
  [["--prompt", ""], "a value for --prompt, got none"],
  [["--prompt", "--odd"], "(--prompt=--odd if that is it), got --odd"],
  [["--seed", "1", "--seed", "2"], "one --seed, got 1 and 2"],
  [["--seed", "1.5"], "--seed a whole number, got 1.5"],
  [["--steps", "0"], "--steps a whole number from 1 to 1000, got 0"],
  [["--lr-unet", "-1"], "--lr-unet a number from 0, got -1"],
  [["--guidance", "Infinity"], "--guidance a number, got Infinity"],
  [["--values", "1,,2"], "--values a number, got nothing (values separated"],
  [["--layers", "some"], "--layers attention, all, got some"],
  [["--flips=maybe"], "--flips without a value, got maybe"],
];

for (const [args, says] of bad) {
  Deno.test(`refused: ${args.join(" ")}`, () => {
    assertThrows(() => read(...args), Error, says);
  });
}

Deno.test("a file has options as a command line has, which counts more", () => {
  const args = ["--images=in", "--steps", "5"];
  const file = (fields: Record<string, unknown>) =>
    withFile("try", args, TABLE, fields);
  const all = file({
    ...{ lrUnet: 0.5, steps: 9, images: "other", guidance: -1, flips: true },
    prompt: ["a", "b=c"],
  });
  const read = readTable("try", all, TABLE)!;
  assertEquals(
    [read.lrUnet, read.steps, read.images, read.guidance, read.flips],
    [0.5, 5, "in", -1, true],
  );
  assertEquals(read.prompt, ["a", "b=c"]);
  assertEquals(file({ flips: false, seed: null, "lr-unet": 1, lr_unet: 2 }), [
    ...args,
    ...["--lr-unet=1", "--lr-unet=2"],
  ]);
  assertThrows(() => file({ quux: 1 }), Error, "options in the file (--help)");
  assertThrows(() => file({ network_dim: 1, rate: 1 }), Error, "got network_d");
  assertThrows(() => file({ lr: 1 }), Error, "perhaps --lr-unet, got lr");
  assertThrows(
    () => file({ size: { width: 1 } }),
    Error,
    "text or a number for size",
  );
});

Deno.test("arguments without a name go where the table says", () => {
  const table = optionTable({
    from: { type: text, argument: true, hint: "IN", needed: true, help: "in" },
    out: { type: text, argument: true, hint: "OUT", needed: true, help: "out" },
    rank: { type: whole(), help: "rank" },
  });
  const values = readTable("try", ["a", "--rank", "-2", "b"], table)!;
  assertEquals(values, { from: "a", out: "b", rank: -2 });
  assertEquals(readTable("try", ["--", "-a", "--b"], table)!.out, "--b");
  for (const args of [["a"], ["a", "b", "c"], []]) {
    assertThrows(
      () => readTable("try", args, table),
      Error,
      `IN and OUT, got ${args.join(" ") || "nothing"}`,
    );
  }
  assertThrows(() => readTable("try", [], TABLE), Error, "expected --images");
});

Deno.test("help has every option, its default, and short lines", () => {
  const help = tableHelp(TABLE);
  for (const field of Object.keys(TABLE)) {
    assert(help.includes(optionName(field)), field);
  }
  assert(help.includes("its rate (default: 0.0001)"));
  assert(help.includes("(default: the model's)"));
  assert(help.includes("what to draw; may be given again"));
  for (const line of help.split("\n")) assert(line.length <= 80, line);
});

Deno.test("a command's request is made of its table", () => {
  const made = command({
    name: "try",
    summary: "try it",
    usage: "deno task try",
    about: "Tries.",
    options: TABLE,
    request: ({ images, steps }) => ({ images, steps: steps ?? 3 }),
    run: () => Promise.resolve(),
  });
  assertEquals(made.parse(["--images", "in"]), { images: "in", steps: 3 });
  assertEquals(made.parse(["--help"]), undefined);
  assert(made.help.startsWith("deno task try\n\nTries.\n\n  --images FOLDER"));
});
