/**
 * `deno task pack [FOLDER]`: one folder that checks and measures the library on
 * a bare Linux machine with an NVIDIA card and no network.
 *
 * In it are `run.sh` and `files.tar.xz`: Deno itself, the sources, tests and the
 * embedded model, the npm packages that they load, and a Vulkan loader. Packages
 * are taken from Deno's cache, so whatever the tests need has to be in it.
 *
 * @module
 */
import { helped } from "./help.ts";
import { listFiles, root, runDeno } from "./repository.ts";

const HELP = `
deno task pack [FOLDER]

Writes a folder (out/pack) that runs on a bare x86-64 Linux machine with a
graphics card and no network: bash FOLDER/run.sh --help.

  --help   this text
`;

/** No larger than this, so that it can be carried anywhere. */
const LIMIT = 64e6;

/** What of the repository is needed. */
const WANTED = ["src", "tests", "models/micro"];

/** The second evaluator, which nothing here asks for. */
const UNWANTED = /^models\/micro\/clip_b\//;

/** Packages that Deno wants to see but nothing here loads. */
const STUBS =
  /^(@types\/|@huggingface\/tasks$|@?ioredis|@?msgpackr|bullmq$|core-js$|luxon$|plotly|yargs)/;

/** What of a package is read when it runs. */
function isRead(name: string, file: string): boolean {
  if (file === "package.json") return true;
  if (STUBS.test(name) || /\/codec\/enc\//.test(file)) return false;
  return name.startsWith("@tensorflow/")
    ? /^dist\/[^/]+\.(node\.js|wasm)$/.test(file)
    : /\.([cm]?js|json|wasm)$/.test(file);
}

/** Name and version of every npm package that the lock file names. */
async function packages(): Promise<[name: string, version: string][]> {
  const { npm } = JSON.parse(await Deno.readTextFile(`${root}/deno.lock`)) as {
    npm: Record<string, unknown>;
  };
  return Object.keys(npm).map((key) => {
    const [, name, version] = /^(@?[^@]+)@([^_]+)/.exec(key)!;
    return [name, version];
  });
}

/** Files below a folder, by their paths in it. */
async function* below(folder: string, path = ""): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(`${folder}/${path}`)) {
    const own = path + entry.name;
    if (entry.isDirectory) yield* below(folder, `${own}/`);
    else yield own;
  }
}

async function copy(from: string, to: string): Promise<void> {
  await Deno.mkdir(to.slice(0, to.lastIndexOf("/")), { recursive: true });
  await Deno.copyFile(from, to);
}

/** Copies what Deno needs of its cache to run without a network. */
async function copyPackages(to: string): Promise<void> {
  const { stdout } = await runDeno(["info", "--json"]);
  const { npmCache } = JSON.parse(stdout) as { npmCache: string };
  for (const [name, version] of await packages()) {
    const at = `registry.npmjs.org/${name}/${version}`;
    const folder = `${npmCache}/${at}`;
    // Those of other systems are not there.
    if (!await Deno.stat(folder).then(() => true, () => false)) continue;
    for await (const file of below(folder)) {
      if (!isRead(name, file)) continue;
      await copy(`${folder}/${file}`, `${to}/${at}/${file}`);
    }
  }
}

/** Where Debian and others have the Vulkan loader. */
const LOADERS = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"].map(
  (folder) => `${folder}/libvulkan.so.1`,
);

async function copyLoader(to: string): Promise<void> {
  for (const path of LOADERS) {
    try {
      return await copy(await Deno.realPath(path), `${to}/libvulkan.so.1`);
    } catch {
      // The next one.
    }
  }
  console.warn("no Vulkan loader here (Debian: libvulkan1): none is packed");
}

/** Writes the folder and says how large it is. */
async function pack(folder: string): Promise<void> {
  const stage = await Deno.makeTempDir();
  try {
    const files = ["mod.ts", "deno.json", "deno.lock"];
    for (const wanted of WANTED) files.push(...await listFiles(wanted, ""));
    for (const file of files) {
      if (UNWANTED.test(file)) continue;
      await copy(`${root}/${file}`, `${stage}/app/${file}`);
    }
    await copyPackages(`${stage}/cache/npm`);
    await copyLoader(`${stage}/vulkan`);
    await copy(Deno.execPath(), `${stage}/deno`);
    await Deno.mkdir(folder, { recursive: true });
    const archive = `${folder}/files.tar.xz`;
    const { code } = await new Deno.Command("tar", {
      args: ["-cJf", archive, "--owner=0", "--group=0", "-C", stage, "."],
      env: { XZ_OPT: "-6" },
    }).output();
    if (code !== 0) throw new Error(`tar ended with code ${code}`);
    await copy(`${root}/tests/tools/pack/run.sh`, `${folder}/run.sh`);
    const { size } = await Deno.stat(archive);
    console.log(`${folder}: ${(size / 1e6).toFixed(1)} MB`);
    if (size > LIMIT) throw new Error(`the pack is over ${LIMIT / 1e6} MB`);
  } finally {
    await Deno.remove(stage, { recursive: true });
  }
}

if (import.meta.main && !helped(HELP)) {
  const [folder = "out/pack", ...more] = Deno.args;
  if (folder.startsWith("-") || more.length > 0) {
    console.error(
      `Cannot pack: expected one folder, got ${Deno.args.join(" ")}`,
    );
    Deno.exit(2);
  }
  await pack(folder);
}
