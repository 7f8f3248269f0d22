/**
 * The import rule, checked on what the modules really import:
 * imports in src only go down, mod.ts and src/exports are for users, examples
 * and notebooks are users.
 *
 * @module
 */
import { notebookCode } from "./notebook_check.ts";
import { exists, listFiles, root, runDeno } from "./repository.ts";

/** The folders of src by level, lowest first; those on one level may not import each other. */
export const floors: readonly (readonly string[])[] = [
  ["core"],
  ["io", "nn", "optim"],
  ["models", "report"],
  ["diffusion"],
  ["customize"],
  ["fusion", "formats"],
  ["evaluation"],
  ["micro"],
  ["lab"],
  ["experiments"],
  ["cli"],
  ["exports"],
];

/** One module importing another; paths relative to the repository. */
export interface Import {
  /** The module that imports. */
  from: string;
  /** The module that is imported. */
  to: string;
}

/** Which imports break the rule, a sentence each; none if all is well. */
export function violations(imports: readonly Import[]): string[] {
  return imports.flatMap(({ from, to }) => {
    const reason = forbidden(from, to);
    return reason === undefined ? [] : [`${from} imports ${to}: ${reason}`];
  }).sort();
}

function forbidden(from: string, to: string): string | undefined {
  const [top, room] = from.split("/");
  if (top === "examples" || top === "notebooks") {
    const open = ["mod.ts", `${top}/`, "src/exports/"];
    if (open.some((start) => to.startsWith(start))) return undefined;
    return `${top} may import only the package's exports, as a user would`;
  }
  if (top === "mod.ts") {
    return to.startsWith("src/") ? undefined : "mod.ts may import only src";
  }
  if (top !== "src") return undefined;
  if (!to.startsWith("src/")) return "src may import only src";
  const floor = floorOf(room);
  if (floor < 0) return `src/${room} is not a folder of ARCHITECTURE.md`;
  const target = to.split("/")[1];
  const targetFloor = floorOf(target);
  if (targetFloor < 0) {
    return `src/${target} is not a folder of ARCHITECTURE.md`;
  }
  if (target === room || targetFloor < floor) return undefined;
  return targetFloor === floor
    ? `${room} and ${target} are on the same level`
    : `${target} is above ${room}`;
}

/**
 * Modules that import each other in a circle, one line per circle: each names
 * the modules in the order of import, the alphabetically first one twice. Type
 * imports count. Imports outside src count as well.
 *
 * @param imports Who imports whom.
 */
export function circles(imports: readonly Import[]): string[] {
  const targets = new Map<string, string[]>();
  for (const { from, to } of imports) {
    targets.set(from, [...targets.get(from) ?? [], to].sort());
  }
  const done = new Set<string>();
  const path: string[] = [];
  const found = new Set<string>();
  const visit = (module: string) => {
    const start = path.indexOf(module);
    if (start >= 0) {
      const ring = path.slice(start);
      const least = ring.indexOf([...ring].sort()[0]);
      const turned = [...ring.slice(least), ...ring.slice(0, least)];
      found.add([...turned, turned[0]].join(" → "));
      return;
    }
    if (done.has(module)) return;
    path.push(module);
    for (const to of targets.get(module) ?? []) visit(to);
    path.pop();
    done.add(module);
  };
  for (const module of [...targets.keys()].sort()) visit(module);
  return [...found].sort();
}

function floorOf(room: string): number {
  return floors.findIndex((rooms) => rooms.includes(room));
}

/**
 * Every import, export-from, dynamic import, type import and worker URL
 * between modules of src, examples, notebooks and mod.ts.
 */
export async function readImports(): Promise<Import[]> {
  const files = (await Promise.all([
    listFiles("src", ".ts"),
    listFiles("examples", ".ts"),
  ])).flat();
  if (await exists("mod.ts")) files.push("mod.ts");
  return [
    ...await moduleImports(files),
    ...await workerImports(files),
    ...await notebookImports(await listFiles("notebooks", ".ipynb")),
  ];
}

interface Dependency {
  specifier: string;
  code?: { specifier?: string; error?: string };
  type?: { specifier?: string };
}

async function moduleImports(files: string[]): Promise<Import[]> {
  // One graph that holds all files, reachable from mod.ts or not.
  const entry = await Deno.makeTempFile({ suffix: ".ts" });
  const lines = files.map((file) => `import "file://${root}/${file}";`);
  await Deno.writeTextFile(entry, lines.join("\n"));
  try {
    const { code, stdout, stderr } = await runDeno(
      ["info", "--json", "--no-lock", "--config", `${root}/deno.json`, entry],
    );
    if (code !== 0) throw new Error(`Cannot read the module graph: ${stderr}`);
    const modules: {
      specifier: string;
      error?: string;
      dependencies?: Dependency[];
    }[] = JSON.parse(stdout).modules;
    const known = new Set(files);
    return modules.flatMap(({ specifier, dependencies = [] }) => {
      const from = local(specifier);
      if (from === undefined || !known.has(from)) return [];
      const targets = dependencies
        // Packages, though their stand-ins may lie in this repository.
        .filter(({ specifier }) => !specifier.startsWith("@std/"))
        .flatMap(({ code, type }) => [code?.specifier, type?.specifier])
        .flatMap((url) => local(url) ?? []);
      return [...new Set(targets)].map((to) => ({ from, to }));
    });
  } finally {
    await Deno.remove(entry);
  }
}

/**
 * Workers are started by URL, and what is seldom needed is imported by a
 * template: the module graph follows neither.
 */
async function workerImports(files: string[]): Promise<Import[]> {
  const found = await Promise.all(files.map(async (from) => {
    const text = await Deno.readTextFile(`${root}/${from}`);
    const urls = text.matchAll(
      /new URL\(\s*"(\.[^"]+\.ts)",\s*import\.meta\.url,?\s*\)/g,
    );
    const templates = text.matchAll(/\bimport\(\s*`(\.[^`$]+\.ts)\$\{""\}`/g);
    return [...urls, ...templates]
      .flatMap(([, path]) => resolve(from, path) ?? []);
  }));
  return found.flat();
}

async function notebookImports(files: string[]): Promise<Import[]> {
  const found = await Promise.all(files.map(async (from) => {
    const text = await Deno.readTextFile(`${root}/${from}`);
    const specifiers = notebookCode(text).flatMap((
      { source },
    ) => [
      ...source.matchAll(/(?:\bfrom|\bimport)\s*\(?\s*["'](\.[^"']+)["']/g),
    ]);
    return specifiers.flatMap(([, path]) => resolve(from, path) ?? []);
  }));
  return found.flat();
}

function resolve(from: string, path: string): Import | undefined {
  const to = local(new URL(path, `file://${root}/${from}`).href);
  return to === undefined ? undefined : { from, to };
}

function local(url: string | undefined): string | undefined {
  const prefix = `file://${root}/`;
  return url?.startsWith(prefix) ? url.slice(prefix.length) : undefined;
}

if (import.meta.main) {
  const imports = await readImports();
  const broken = [
    ...violations(imports),
    ...circles(imports).map((ring) => `a circle of imports: ${ring}`),
  ];
  for (const line of broken) console.error(line);
  console.log(`${imports.length} imports, ${broken.length} against the rule`);
  Deno.exitCode = broken.length > 0 ? 1 : 0;
}
