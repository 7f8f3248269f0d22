import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { decodePng } from "../../src/io/png.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { ON_ONE_CORE, root, runDeno } from "../tools/repository.ts";
import { served } from "./served.ts";

/** What makes a command's run a short one. */
const SHORT: Readonly<Record<string, readonly string[]>> = {
  train: ["--images", "pictures", "--steps", "2", "--batch", "1"],
  fuse: ["--steps", "2"],
  sample: ["--steps", "2"],
  evaluate: ["--no-prefix", "--say", "<bobo1>=animal"],
  convert: ["--to", "kohya", "--without-tokens"],
  ablation: [
    ...["--train-steps", "1", "--steps", "1", "--method", "edlora"],
    // The commands before it use the published model and its CLIP.
    ...["--fusion", "weight", "--model", "tiny/model", "--clip", "tiny/clip"],
  ],
};

/**
 * The largest package that JSR takes, in bytes before compression
 * (`MAX_TOTAL_FILE_SIZE` in jsr-io/jsr, api/src/tarball.rs). `deno publish
 * --dry-run` of Deno 2.9 does not check it.
 */
const LARGEST = 20 * 1024 ** 2;

/** What `deno publish` would publish, and what it complains of. */
async function published(): Promise<{ files: Set<string>; said: string }> {
  const { code, stdout, stderr } = await runDeno([
    ...["publish", "--dry-run", "--allow-dirty", "--no-check"],
  ]);
  const said = stdout + stderr;
  assertEquals(code, 0, said);
  const files = [...said.matchAll(/^\s+file:\/\/(\S+) \(/gm)]
    .map(([, path]) => decodeURIComponent(path).slice(root.length));
  return { files: new Set(files), said };
}

const { files, said } = await published();

Deno.test("what is published is complete, and nothing is warned of", () => {
  for (const name of ["/mod.ts", "/deno.json", "/src/cli/main.ts"]) {
    assert(files.has(name), `${name} is not published: ${said}`);
  }
  assert(files.has("/models/micro/unet/diffusion_pytorch_model.safetensors"));
  assertEquals([...files].filter((name) => name.includes("/tests/")), []);
  assertEquals(said.match(/^.*warning\b.*$/gim), null);
});

Deno.test("what is published is not too large for JSR", async () => {
  const sizes = await Promise.all(
    [...files].map(async (path) => (await Deno.stat(root + path)).size),
  );
  const size = sizes.reduce((sum, one) => sum + one, 0);
  console.log(`${files.size} files, ${size} bytes of ${LARGEST}`);
  assert(size <= LARGEST, `${size} bytes, JSR takes ${LARGEST}`);
});

Deno.test("what is published runs by its address alone", async () => {
  await using server = served(root, {
    // Nothing else is there.
    only: (path) => files.has(path),
  });
  const folder = await Deno.makeTempDir();
  try {
    const map = `${folder}/map.json`;
    const { imports, exports } = JSON.parse(
      await Deno.readTextFile(`${root}/deno.json`),
    );
    // As `deno publish` does: npm's packages by their version, no others.
    const npm = Object.entries<string>(imports).filter(([, to]) =>
      to.startsWith("npm:")
    );
    assert(npm.length > 5);
    await Deno.writeTextFile(
      map,
      JSON.stringify({
        imports: {
          ...Object.fromEntries(npm),
          // Modules inside of packages.
          ...Object.fromEntries(
            npm.map(([name, to]) => [
              `${name}/`,
              `${to.replace(/^npm:/, "npm:/")}/`,
            ]),
          ),
          ...Object.fromEntries(
            Object.entries<string>(exports).map(([name, path]) => [
              `@mix-of-show/mix-of-show${name.slice(1)}`,
              server.url + path.slice(1),
            ]),
          ),
        },
      }),
    );
    // A cache of its own: nothing of an earlier run is in it, and each module is
    // fetched once. Packages of npm are where they are.
    const { denoDir } = JSON.parse((await runDeno(["info", "--json"])).stdout);
    const DENO_DIR = `${folder}/deno`;
    await Deno.mkdir(DENO_DIR);
    await Deno.symlink(`${denoDir}/npm`, `${DENO_DIR}/npm`);
    const run = async (...args: string[]) => {
      const { code, stdout, stderr } = await runDeno([
        ...["run", "-q", "-A", "--no-config", "--no-lock", "--no-check"],
        ...[`--import-map=${map}`, ON_ONE_CORE, ...args],
      ], { cwd: folder, env: { DENO_DIR } });
      assertEquals(code, 0, stdout + stderr);
      return stdout;
    };
    const main = server.url + exports["./cli"].slice(1);
    await Deno.writeTextFile(
      `${folder}/helps.ts`,
      `import { main } from "${main}";
for (const name of ["train", "fuse", "sample", "evaluate", "convert", "inspect",
  "memory", "ablation", "experiment", "worker"]) {
  const code = await main([name, "--help"]);
  if (code !== 0) throw new Error(name + " --help: " + code);
}
`,
    );
    const help = await run(`${folder}/helps.ts`);
    for (const option of ["--images", "--guidance", "--queue"]) {
      assertStringIncludes(help, option);
    }
    const wasm = ["--backend", "wasm"];
    await run(
      ...[`${server.url}/examples/concept_pictures.ts`, "bobo", "pictures"],
    );
    await selectBackend("wasm");
    await writeTinyWorld(`${folder}/tiny`);
    const did: Record<string, string> = {};
    for (
      const [name, ...args] of [
        ["train", "--name", "bobo", "--class", "animal", ...wasm],
        ["fuse", "--concept", "out/bobo.safetensors", ...wasm],
        ["sample", "--model", "out/fused", "--prompt", "a <bobo1>", ...wasm],
        ["evaluate", "--images", "out/sample", ...wasm],
        ["convert", "out/bobo.safetensors", "bobo.safetensors"],
        ["inspect", "bobo.safetensors"],
        ["memory", "--model", "sd15", "--sample", "--size", "64"],
        ["ablation", "--quick", "--concepts", "kuro,lila", "--n", "1", ...wasm],
        ["experiment", "domain", "--quick", "--dry-run", ...wasm],
      ]
    ) did[name] = await run(main, name, ...args, ...SHORT[name] ?? []);
    console.log(did);
    const pictures: string[] = [];
    for await (const { name } of Deno.readDir(`${folder}/out/sample`)) {
      if (name.endsWith(".png")) pictures.push(name);
    }
    const bytes = await Deno.readFile(`${folder}/out/sample/${pictures[0]}`);
    assertEquals(decodePng(bytes).width, 64);
    // README's lines for Deno.
    const text = await Deno.readTextFile(`${root}/README.md`);
    const code = /```js\n([^]*?)```/.exec(text)![1];
    await Deno.writeTextFile(
      `${folder}/example.ts`,
      code.replace('"auto"', '"wasm"'),
    );
    await run(`${folder}/example.ts`);
    assertEquals(
      decodePng(await Deno.readFile(`${folder}/fox.png`)).height,
      64,
    );
    // Only a model's optional files are asked for in vain.
    const vain = server.asked.map(({ path }) => path)
      .filter((path) => !files.has(path) && !path.endsWith("/"));
    assertEquals(vain.filter((path) => !path.startsWith("/models/")), []);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
