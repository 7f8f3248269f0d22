import { assertEquals } from "@std/assert";
import { parseArgs } from "@std/cli/parse-args";
import * as std from "@std/cli";

/** Compiles only if the two types are the same. */
function sameType<A, B>(
  _same: (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2)
    ? true
    : false,
): void {}

Deno.test("the root exports parseArgs", () => {
  assertEquals(std.parseArgs, parseArgs);
});

Deno.test("without options: values, flags, numbers, positionals", () => {
  const args = [
    "--a",
    "1",
    "--b=x=y",
    "--c",
    "-d",
    "-e5",
    "-fgh",
    "-i=k",
    "p",
    "0x10",
  ];
  assertEquals(parseArgs(args), {
    a: 1,
    b: "x=y",
    c: true,
    d: true,
    e: 5,
    f: true,
    g: true,
    h: true,
    i: "k",
    _: ["p", 16],
  });
});

Deno.test("string keeps text, boolean takes no value, both have types", () => {
  const out = parseArgs(["--n", "007", "--quick", "dir", "--plain"], {
    string: ["n", "missing"],
    boolean: ["quick", "slow"],
  });
  sameType<typeof out.n, string | undefined>(true);
  sameType<typeof out.quick, boolean>(true);
  sameType<typeof out.unknownName, unknown>(true);
  assertEquals({ ...out }, {
    n: "007",
    quick: true,
    slow: false,
    plain: true,
    _: ["dir"],
  });
});

Deno.test("a string without a value is empty; = gives flags a value", () => {
  const options = { string: ["n"], boolean: ["q", "r"] } as const;
  assertEquals({ ...parseArgs(["--n", "--q=false", "--r", "true"], options) }, {
    n: "",
    q: false,
    r: true,
    _: [],
  });
});

Deno.test("an option is never another option's value", () => {
  assertEquals(parseArgs(["--a", "--b", "-1"]), {
    a: true,
    b: true,
    "1": true,
    _: [],
  });
});

Deno.test("default fills what is missing, aliases too, with its type", () => {
  const out = parseArgs(["--seed", "3"], {
    string: ["out"],
    boolean: ["json"],
    alias: { out: ["o", "output"] },
    default: { out: "results", json: true, seed: 1, n: 5 },
  });
  sameType<typeof out.out, string>(true);
  sameType<typeof out.o, string>(true);
  sameType<typeof out.json, boolean>(true);
  assertEquals({ ...out }, {
    out: "results",
    o: "results",
    output: "results",
    json: true,
    seed: 3,
    n: 5,
    _: [],
  });
});

Deno.test("alias sets every spelling, whichever was given", () => {
  const out = parseArgs(["-h", "-o", "dir"], {
    boolean: ["help"],
    string: ["out"],
    alias: { help: "h", out: "o" },
  });
  assertEquals({ ...out }, {
    help: true,
    h: true,
    out: "dir",
    o: "dir",
    _: [],
  });
});

Deno.test("collect gathers repeated options, and is empty without them", () => {
  const options = { string: ["x", "y"], collect: ["x", "y", "z"] } as const;
  const out = parseArgs(["--x", "1", "--x=2", "--z", "3"], options);
  sameType<typeof out.x, string[]>(true);
  sameType<typeof out.z, unknown[]>(true);
  assertEquals({ ...out }, { x: ["1", "2"], y: [], z: [3], _: [] });
});

Deno.test("of a repeated option that is not collected the last counts", () => {
  assertEquals(parseArgs(["--x", "1", "--x", "2"]), { x: 2, _: [] });
});

Deno.test("negatable accepts --no-name, other names keep their no-", () => {
  const out = parseArgs(["--no-color", "--no-other"], {
    boolean: ["color"],
    negatable: ["color"],
    default: { color: true },
  });
  assertEquals({ ...out }, { color: false, "no-other": true, _: [] });
});

Deno.test("boolean: true makes every --name without = a flag", () => {
  assertEquals(parseArgs(["--a", "b", "--c=d"], { boolean: true }), {
    a: true,
    c: "d",
    _: ["b"],
  });
});

Deno.test("unknown sees what is not defined and may drop it", () => {
  const seen: unknown[] = [];
  const out = parseArgs(["--known", "1", "--typo", "2", "-z", "pos"], {
    string: ["known"],
    unknown: (arg, key, value) => {
      seen.push([arg, key, value]);
      return arg === "pos";
    },
    boolean: ["z"],
  });
  assertEquals(seen, [["--typo", "typo", "2"], ["pos", undefined, undefined]]);
  assertEquals({ ...out }, { known: "1", z: true, _: ["pos"] });
});

Deno.test("stopEarly leaves the rest to a subcommand", () => {
  const args = ["--a", "1", "train", "--steps", "3"];
  assertEquals(parseArgs(args, { stopEarly: true }), {
    a: 1,
    _: ["train", "--steps", "3"],
  });
});

Deno.test("-- ends the options; with the option they are kept apart", () => {
  const args = ["a", "--", "--b", "1"];
  assertEquals(parseArgs(args), { _: ["a", "--b", "1"] });
  assertEquals(parseArgs(args, { "--": true }), {
    _: ["a"],
    "--": ["--b", "1"],
  });
});

Deno.test("dotted names nest, in the value and in the type", () => {
  const out = parseArgs(["--a.b", "x", "--c.d", "4"], {
    string: ["a.b"],
    boolean: ["a.e"],
  });
  sameType<typeof out.a.b, string | undefined>(true);
  sameType<typeof out.a.e, boolean>(true);
  assertEquals({ ...out }, { a: { b: "x", e: false }, c: { d: 4 }, _: [] });
});

Deno.test("a dash alone is positional; numbers in _ stay text on request", () => {
  assertEquals(parseArgs(["-", "5"]), { _: ["-", 5] });
  assertEquals({ ...parseArgs(["5"], { string: ["_"] }) }, { _: ["5"] });
});
