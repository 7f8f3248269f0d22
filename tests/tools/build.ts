/**
 * `deno task build`: writes `dist/`, the npm package with its browser bundle.
 *
 * The package keeps the modules of `src` as they are, each transpiled by itself,
 * so that addresses beside a module (workers, weights) hold. The bundle has
 * tfjs's core and its wasm and webgpu backends, and nothing else of it.
 *
 * @module
 */
// Of its own lock file: nobody else needs these.
// deno-lint-ignore no-import-prefix
import * as esbuild from "npm:esbuild@0.28.2";
// deno-lint-ignore no-import-prefix
import ts from "npm:typescript@5.9.3";
import { helped, onlyKnown } from "./help.ts";
import { listFiles, root } from "./repository.ts";

const HELP = `
deno task build

Writes dist/: the npm package (ESM and declarations), in dist/bundle/browser the
bundle for a page, and in dist/studio a page. Needs npm, which fetches the
packages of the bundle.

  --help   this text
`;

interface Config {
  name: string;
  version: string;
  license: string;
  exports: Record<string, string>;
  imports: Record<string, string>;
  publish: { include: string[]; exclude: string[] };
}

const dist = `${root}/dist`;

/** Packages that only a queue, a bucket, a page with figures or a chart asks for. */
const OPTIONAL = [
  ...["bullmq", "ioredis", "aws4fetch", "plotly.js-dist-min"],
  ...["@fontsource/dejavu-sans", "@resvg/resvg-wasm", "jsdom"],
];

/**
 * What no page needs, a quarter of a megabyte: the hub's client, as browsers have
 * no folder for downloads, and tfjs in plain JavaScript, as every browser that
 * runs the bundle has WebAssembly. Whoever asks for them is told so.
 */
const LEFT_OUT = /^@(huggingface\/hub|tensorflow\/tfjs-backend-cpu)$/;

/**
 * tfjs without WebGL and layers, half a megabyte that no page needs: operations,
 * also as methods of tensors, and gradients.
 */
const core: esbuild.Plugin = {
  name: "core",
  setup(build) {
    build.onResolve({ filter: /^@tensorflow\/tfjs$/ }, ({ path }) => ({
      ...{ path, namespace: "core", sideEffects: true },
    }));
    build.onLoad({ filter: /.*/, namespace: "core" }, () => ({
      contents: `export * from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-core/dist/register_all_gradients";
import "@tensorflow/tfjs-core/dist/public/chained_ops/register_all_chained_ops";`,
      resolveDir: dist,
    }));
    build.onResolve({ filter: LEFT_OUT }, ({ path }) => ({
      ...{ path, namespace: "left-out" },
    }));
    build.onLoad({ filter: /.*/, namespace: "left-out" }, ({ path }) => ({
      contents: `throw new Error("the bundle for pages is without ${path}");
export const listFiles = undefined, modelInfo = undefined;`,
    }));
    // zod's messages in fifty languages: ours are English.
    build.onLoad({ filter: /zod\/v4\/locales\/index\.js$/ }, ({ path }) => ({
      contents: 'export { default as en } from "./en.js";',
      resolveDir: path.slice(0, path.lastIndexOf("/")),
    }));
  },
};

/** What of a browser's bundle is WebAssembly, and lies beside it. */
const BINARIES = [
  "@tensorflow/tfjs-backend-wasm/dist/tfjs-backend-wasm.wasm",
  "@tensorflow/tfjs-backend-wasm/dist/tfjs-backend-wasm-simd.wasm",
  "@jsquash/jpeg/codec/dec/mozjpeg_dec.wasm",
  "@jsquash/webp/codec/dec/webp_dec.wasm",
  "@jsquash/avif/codec/dec/avif_dec.wasm",
];

/** Modules that the package has: not the commands, which are Deno's. */
async function modules(): Promise<string[]> {
  const files = await listFiles("src", ".ts");
  return ["mod.ts", ...files.filter((file) => !file.startsWith("src/cli/"))];
}

/** Every module by itself, its imports as they will be called. */
const apart: esbuild.Plugin = {
  name: "apart",
  setup(build) {
    build.onResolve({ filter: /.*/ }, ({ path, kind, with: attributes }) => {
      if (kind === "entry-point") return undefined;
      if (attributes.type === "text") return { path, namespace: "text" };
      return { path: path.replace(/^(\..*)\.ts$/, "$1.js"), external: true };
    });
    // Node has no text imports: the file is read from the package.
    build.onLoad({ filter: /.*/, namespace: "text" }, ({ path }) => ({
      contents: `import { readFile } from "node:fs/promises";
export default await readFile(new URL(import.meta.resolve(${
        JSON.stringify(path)
      })), "utf8");`,
    }));
    build.onLoad({ filter: /\.ts$/ }, async ({ path }) => ({
      contents: (await Deno.readTextFile(path)).replace(
        /("\.{1,2}\/[^"]+)\.ts"(,\s*import\.meta\.url)/g,
        '$1.js"$2',
      ).replace(/(\bimport\(\s*)`(\.[^`$]+)\.ts\$\{""\}`/g, '$1"$2.js"'),
      loader: "ts" as const,
    }));
  },
};

/** The declarations of a module, from its own text. */
async function declarations(file: string): Promise<void> {
  // What users see has its types written out, as `deno publish` asks; what else
  // a module exports may be inferred, and is `any` here.
  const { outputText } = ts.transpileDeclaration(
    await Deno.readTextFile(`${root}/${file}`),
    {
      fileName: file,
      compilerOptions: { target: ts.ScriptTarget.ESNext, strict: true },
    },
  );
  const text = outputText
    .replace(/(from |import\()"(\.[^"]+)\.ts"/g, '$1"$2.js"');
  await Deno.writeTextFile(`${dist}/${file.replace(/\.ts$/, ".d.ts")}`, text);
}

/** The version that deno.json pins a package to. */
function pinned({ imports }: Config, name: string): string {
  const version = /^npm:.*@([^@/]+)$/.exec(imports[name])?.[1];
  if (!version) throw new Error(`no version of ${name} in deno.json`);
  return version;
}

function packageJson(config: Config): Record<string, unknown> {
  const names = Object.keys(config.imports).filter((name) =>
    config.imports[name].startsWith("npm:")
  );
  const versions = (wanted: string[]) =>
    Object.fromEntries(wanted.map((name) => [name, pinned(config, name)]));
  const entries = Object.entries(config.exports)
    .filter(([, path]) => !path.startsWith("./src/cli/"))
    .map(([name, path]) => [name, {
      types: path.replace(/\.ts$/, ".d.ts"),
      default: path.replace(/\.ts$/, ".js"),
    }]);
  const bundle = "./bundle/browser/mix-of-show.js";
  return {
    name: config.name.replace(/^@.*\//, ""),
    version: config.version,
    description: "Mix-of-Show: teach a diffusion model several concepts, " +
      "trained apart, and fuse them into one model",
    license: config.license,
    type: "module",
    engines: { node: ">=22" },
    exports: {
      ...Object.fromEntries(entries),
      "./browser": { types: "./mod.d.ts", default: bundle },
      ...Object.fromEntries(
        ["formats", "nn"].map((name) => [`./browser/${name}`, {
          types: `./src/exports/${name}.d.ts`,
          default: `./bundle/browser/${name}.js`,
        }]),
      ),
      "./package.json": "./package.json",
    },
    unpkg: bundle,
    jsdelivr: bundle,
    sideEffects: false,
    dependencies: versions(names.filter((name) => !OPTIONAL.includes(name))),
    peerDependencies: versions(OPTIONAL),
    peerDependenciesMeta: Object.fromEntries(
      OPTIONAL.map((name) => [name, { optional: true }]),
    ),
  };
}

/** Copies what is published of models, and the texts. */
async function copyFiles(): Promise<void> {
  for (const file of await listFiles("models/micro", "")) {
    // Only pretraining needs it; JSR's package leaves it out, too.
    if (file.startsWith("models/micro/clip_a/")) continue;
    const to = `${dist}/${file}`;
    await Deno.mkdir(to.slice(0, to.lastIndexOf("/")), { recursive: true });
    await Deno.copyFile(`${root}/${file}`, to);
  }
  for (const file of ["README.md", "LICENSE", "NOTICE"]) {
    await Deno.copyFile(`${root}/${file}`, `${dist}/${file}`);
  }
}

/** Installs the packages of `dist/package.json` into it. */
async function install(): Promise<void> {
  const { code } = await new Deno.Command("npm", {
    args: [
      ...["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"],
    ],
    cwd: dist,
    stdout: "inherit",
    stderr: "inherit",
  }).output();
  if (code !== 0) throw new Error(`npm install ended with code ${code}`);
}

async function removeOld(): Promise<void> {
  // node_modules stay: they are what takes long.
  for await (const { name } of Deno.readDir(dist)) {
    if (["node_modules", "package-lock.json"].includes(name)) continue;
    await Deno.remove(`${dist}/${name}`, { recursive: true });
  }
}

/** Entries of the package that a page can import, and their files. */
const PAGE_ENTRIES: Readonly<Record<string, string>> = {
  "@mix-of-show/mix-of-show": "mix-of-show",
  "@mix-of-show/mix-of-show/formats": "formats",
  "@mix-of-show/mix-of-show/nn": "nn",
};

/** Writes `dist/studio`, a page that imports the bundle as any other would. */
async function buildStudio(common: esbuild.BuildOptions): Promise<void> {
  const from = "examples/studio", to = `${dist}/studio`;
  await esbuild.build({
    ...common,
    entryPoints: [`${from}/main.ts`, `${from}/worker.ts`],
    outdir: to,
    platform: "browser",
    minify: true,
    plugins: [{
      name: "package",
      setup(build) {
        build.onResolve({ filter: /^@mix-of-show\// }, ({ path }) => {
          const file = PAGE_ENTRIES[path];
          if (!file) throw new Error(`the bundle has no ${path}`);
          return { path: `../bundle/browser/${file}.js`, external: true };
        });
      },
    }],
  });
  await Deno.mkdir(`${to}/concepts`, { recursive: true });
  for (const ending of [".html", ".css", ".safetensors"]) {
    for (const file of await listFiles(from, ending)) {
      await Deno.copyFile(
        `${root}/${file}`,
        `${to}${file.slice(from.length)}`,
      );
    }
  }
}

/** Writes `dist/`. */
export async function build(): Promise<void> {
  const config: Config = JSON.parse(
    await Deno.readTextFile(`${root}/deno.json`),
  );
  await Deno.mkdir(dist, { recursive: true });
  await removeOld();
  const files = await modules();
  const common = {
    absWorkingDir: root,
    bundle: true,
    charset: "utf8",
    format: "esm",
    logLevel: "warning",
    // What Node 22 and browsers of 2023 have; `using` is rewritten.
    target: "es2022",
  } as const;
  await esbuild.build({
    ...common,
    entryPoints: files,
    outbase: root,
    outdir: dist,
    platform: "neutral",
    plugins: [apart],
  });
  for (const file of files) await declarations(file);
  await Deno.writeTextFile(
    `${dist}/package.json`,
    JSON.stringify(packageJson(config), null, 2) + "\n",
  );
  await copyFiles();
  await install();
  const folder = `${dist}/bundle/browser`;
  const { metafile } = await esbuild.build({
    ...common,
    entryPoints: {
      "mix-of-show": "mod.ts",
      formats: "src/exports/formats.ts",
      nn: "src/exports/nn.ts",
    },
    outdir: folder,
    platform: "browser",
    minify: true,
    splitting: true,
    metafile: true,
    chunkNames: "chunk-[hash]",
    legalComments: "external",
    plugins: [core],
    nodePaths: [`${dist}/node_modules`],
  });
  await buildStudio(common);
  await esbuild.stop();
  for (const file of BINARIES) {
    await Deno.copyFile(
      `${dist}/node_modules/${file}`,
      `${folder}/${file.slice(file.lastIndexOf("/") + 1)}`,
    );
  }
  const outputs = Object.entries(metafile.outputs);
  const bytes = outputs.reduce((sum, [, output]) => sum + output.bytes, 0);
  console.log(
    `dist: ${files.length} modules; bundle/browser: ${outputs.length} files, ` +
      `${(bytes / 1e6).toFixed(2)} MB of JavaScript`,
  );
  // What is in it, for https://esbuild.github.io/analyze; of no use to others.
  await Deno.mkdir(`${root}/out`, { recursive: true });
  await Deno.writeTextFile(
    `${root}/out/bundle.json`,
    JSON.stringify(metafile),
  );
}

if (import.meta.main && !helped(HELP)) {
  onlyKnown("build");
  await build();
}
