import { assert, assertEquals } from "@std/assert";
import { circles, readImports, violations } from "./tools/layers.ts";
import { listFiles, root } from "./tools/repository.ts";

Deno.test("imports in src only go down, and users see only its exports", async () => {
  const imports = await readImports();
  // An empty list would hold too: the house has at least this one import.
  assert(
    imports.some(({ from, to }) =>
      from === "src/core/backend.ts" && to === "src/core/errors.ts"
    ),
    "the module graph was not read",
  );
  assertEquals(violations(imports), []);
  assertEquals(circles(imports), []);
});

Deno.test("a circle of imports is found and named", () => {
  const imports = (text: string) =>
    text.split(" ").map((pair) => {
      const [from, to] = pair.split(">");
      return { from, to };
    });
  // Two ways to one module are no circle.
  assertEquals(circles(imports("a>b a>c b>d c>d")), []);
  assertEquals(circles(imports("a>b b>c c>a x>c")), ["a → b → c → a"]);
  assertEquals(circles(imports("c>a a>b b>c b>a a>a")), [
    "a → a",
    "a → b → a",
    "a → b → c → a",
  ]);
});

const cases: [from: string, to: string, reason: string | undefined][] = [
  ["src/nn/linear.ts", "src/core/tree.ts", undefined],
  ["src/nn/linear.ts", "src/nn/norm.ts", undefined],
  ["src/cli/main.ts", "src/core/tree.ts", undefined],
  ["mod.ts", "src/nn/linear.ts", undefined],
  ["examples/fuse.ts", "mod.ts", undefined],
  ["notebooks/01.ipynb", "src/exports/lab.ts", undefined],
  ["src/lab/lab.ts", "src/exports/lab.ts", "exports is above lab"],
  ["examples/fuse.ts", "examples/shared.ts", undefined],
  ["src/core/tree.ts", "src/nn/linear.ts", "nn is above core"],
  ["src/nn/linear.ts", "src/io/png.ts", "nn and io are on the same level"],
  ["src/micro/art.ts", "src/evaluation/score.ts", undefined],
  [
    "src/evaluation/score.ts",
    "src/micro/art.ts",
    "micro is above evaluation",
  ],
  ["src/formats/lora.ts", "src/customize/lora.ts", undefined],
  [
    "src/customize/lora.ts",
    "src/formats/lora.ts",
    "formats is above customize",
  ],
  [
    "src/formats/lora.ts",
    "src/fusion/layer.ts",
    "formats and fusion are on the same level",
  ],
  ["src/report/table.ts", "src/lab/store.ts", "lab is above report"],
  ["src/nn/linear.ts", "mod.ts", "src may import only src"],
  ["src/nn/linear.ts", "tests/helpers.ts", "src may import only src"],
  [
    "src/util/x.ts",
    "src/core/tree.ts",
    "src/util is not a folder of ARCHITECTURE.md",
  ],
  [
    "src/nn/x.ts",
    "src/util/x.ts",
    "src/util is not a folder of ARCHITECTURE.md",
  ],
  ["mod.ts", "tests/helpers.ts", "mod.ts may import only src"],
  [
    "notebooks/01.ipynb",
    "src/nn/linear.ts",
    "notebooks may import only the package's exports, as a user would",
  ],
];

for (const [from, to, reason] of cases) {
  Deno.test(`${from} → ${to}: ${reason ?? "allowed"}`, () => {
    const expected = reason ? [`${from} imports ${to}: ${reason}`] : [];
    assertEquals(violations([{ from, to }]), expected);
  });
}

/** Where a machine is named that is not asked of core/platform. */
const NAMES_A_MACHINE = /(?<![\w.])(Deno\.|navigator\b)|["'`]node:/;

/** The same of a module's code, without its comments; the lines. */
function machinesIn(code: string): string[] {
  return code.replaceAll(/\/\*[^]*?\*\//g, "").split("\n")
    .map((line) => line.replace(/(^|\s)\/\/.*$/, "").trim())
    .filter((line) => NAMES_A_MACHINE.test(line));
}

Deno.test("only core/platform and the commands name Deno, Node or navigator", async () => {
  const found: string[] = [];
  for (const file of await listFiles("src", ".ts")) {
    // The commands are Deno's.
    if (/^src\/(cli|core\/platform)\//.test(file)) continue;
    const lines = machinesIn(await Deno.readTextFile(`${root}/${file}`));
    found.push(...lines.map((line) => `${file}: ${line}`));
  }
  assertEquals(found, []);
});

Deno.test("naming a machine is seen, talking of one is not", () => {
  for (
    const line of [
      "await Deno.stat(path)",
      "const n = navigator.hardwareConcurrency;",
      'import { createHash } from "node:crypto";',
    ]
  ) assertEquals(machinesIn(line), [line]);
  for (
    const line of [
      "// Deno.stat is not called",
      "/** @default Deno.env.get */",
      "const visit = (node: SpecLike) => node;",
      "process.bar(1)",
    ]
  ) assertEquals(machinesIn(line), []);
});

Deno.test("the common lock file has no packages that few need", async () => {
  const lock = await Deno.readTextFile(`${root}/deno.lock`);
  assert(lock.includes("npm:@tensorflow/tfjs@"), "not the lock file");
  // Each of these once cost every fresh clone megabytes before its first task.
  // Of the art tool, the kernels' compiler, `experiment evaluators`, and what
  // builds and tests the package.
  for (
    const name of [
      ...["npm:sharp@", "@iconify-json/", "@lobehub/"],
      ...["npm:assemblyscript@", "npm:nsfwjs@"],
      ...["npm:esbuild@", "npm:typescript@", "npm:puppeteer-core@"],
    ]
  ) {
    assert(
      !lock.includes(name),
      `deno.lock contains ${name}: git restore deno.lock`,
    );
  }
});

Deno.test("the package's entries: 150 names in the first, none in two, none renamed", async () => {
  const { exports } = JSON.parse(await Deno.readTextFile(`${root}/deno.json`));
  const owner = new Map<string, string>();
  for (const [entry, path] of Object.entries<string>(exports)) {
    if (entry === "./cli") continue;
    const text = await Deno.readTextFile(`${root}/${path}`);
    const names = [...text.matchAll(/export (?:type )?\{([^}]*)\}/g)]
      .flatMap(([, list]) => list.split(","))
      .map((name) => name.trim().replace(/^type /, ""))
      .filter((name) => name !== "");
    assert(names.length > 0, `${entry} exports nothing`);
    if (entry === ".") assert(names.length <= 150, `${names.length} names`);
    for (const name of names) {
      assert(!name.includes(" as "), `${entry} renames: ${name}`);
      assert(!owner.has(name), `${name} is in ${owner.get(name)} and ${entry}`);
      owner.set(name, entry);
    }
  }
});
