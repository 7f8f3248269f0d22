import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { selectBackend } from "../src/core/backend.ts";
import { key } from "../src/core/random.ts";
import type { Command } from "../src/cli/command.ts";
import { convertCommand } from "../src/cli/convert.ts";
import { evaluateCommand } from "../src/cli/evaluate.ts";
import { fuseCommand } from "../src/cli/fuse.ts";
import { inspectCommand } from "../src/cli/inspect.ts";
import { memoryCommand } from "../src/cli/memory.ts";
import { modelConfigs } from "../src/cli/memory_use.ts";
import { trainingMemory } from "../src/customize/memory.ts";
import { sampleCommand } from "../src/cli/sample.ts";
import { trainCommand } from "../src/cli/train.ts";
import { workerCommand } from "../src/cli/worker.ts";
import { disposeConcept } from "../src/customize/concept.ts";
import { saveConcept } from "../src/formats/concept_file.ts";
import { method, startConcept } from "../src/customize/methods.ts";
import { parseLayout } from "../src/diffusion/layout.ts";
import { decodePng } from "../src/io/png.ts";
import { disposeModel, loadModel } from "../src/models/model.ts";
import { writeTinyWorld } from "./experiments/tiny_world.ts";
import {
  exists,
  ON_ONE_CORE,
  readmeBlocks,
  root,
  runDeno,
} from "./tools/repository.ts";

const readme = await Deno.readTextFile(`${root}/README.md`);

/** Words of a shell command, quotes taken off. */
function words(line: string): string[] {
  return [...line.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, plain]) =>
    quoted ?? plain
  );
}

/** Every command of README, comments and line breaks taken out. */
const lines = (await readmeBlocks("sh")).flatMap((block) =>
  block.replaceAll("\\\n", " ").split("\n")
    .map((line) => line.replace(/\s+#.*$/, "").trim())
    .filter((line) => line !== "")
);

Deno.test("the example in README runs as it stands", async () => {
  const [code, ...others] = await readmeBlocks("ts");
  assertEquals(others, []);
  const folder = await Deno.makeTempDir();
  try {
    const concepts = `${folder}/examples/studio/concepts`;
    await Deno.mkdir(concepts, { recursive: true });
    await Deno.mkdir(`${folder}/models`);
    // A smaller model, and concepts as they start, are enough to show that the
    // lines run.
    await selectBackend("wasm");
    const tiny = await writeTinyWorld(folder);
    await Deno.rename(tiny.model, `${folder}/models/micro`);
    const model = await loadModel(`${folder}/models/micro`);
    for (const [name, classWord] of [["raja", "animal"], ["dash", "vehicle"]]) {
      const concept = await startConcept(model, method("ed-lora"), {
        name,
        classWord,
        key: key(0),
      });
      await saveConcept(`${concepts}/${name}.safetensors`, concept, model);
      disposeConcept(concept);
    }
    disposeModel(model);
    const file = `${folder}/example.ts`;
    // `deno task ok` checks its types.
    await Deno.writeTextFile(file, code);
    const { code: exit, stderr } = await runDeno(
      [
        ...["run", "-q", "--config", `${root}/deno.json`, "-P=local"],
        ...[ON_ONE_CORE, file],
      ],
      { cwd: folder },
    );
    assertEquals(exit, 0, stderr);
    for (const name of ["0.png", "1.png"]) {
      const picture = decodePng(await Deno.readFile(`${folder}/${name}`));
      assertEquals([picture.width, picture.height], [64, 64]);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("every task that README names is one", async () => {
  const { tasks } = JSON.parse(await Deno.readTextFile(`${root}/deno.json`));
  const named = [
    ...readme.matchAll(/deno(?:@[\d.]+)? task ([\w:]+)/g),
  ].map(([, name]) => name);
  assert(named.length > 10);
  for (const name of named) assert(name in tasks, `no task ${name}`);
  const table = [...readme.matchAll(/^\| (`[^|]*`)/gm)]
    .flatMap(([, cell]) => [...cell.matchAll(/`([\w:]+)[^`]*`/g)])
    .map(([, name]) => name);
  assert(table.length > 10);
  for (const name of table) assert(name in tasks, `no task ${name}`);
});

Deno.test("every command in README is one that the tools understand", async () => {
  const commands: Record<string, Pick<Command<unknown>, "parse">> = {
    train: trainCommand,
    fuse: fuseCommand,
    sample: sampleCommand,
    evaluate: evaluateCommand,
    convert: convertCommand,
    inspect: inspectCommand,
    worker: workerCommand,
    memory: memoryCommand,
  };
  const seen = new Set<string>();
  for (const line of lines) {
    const script = /deno\S* run .*?(\S+\.ts)/.exec(line)?.[1];
    if (script) assert(await exists(script), `${script} is not there`);
    const [, name, rest = ""] = /deno\S* task ([\w:]+)(.*)/.exec(line) ?? [];
    if (!name || !(name in commands)) continue;
    seen.add(name);
    // Throws if an option is unknown or a value does not fit.
    commands[name].parse(words(rest));
  }
  assertEquals([...seen].sort(), Object.keys(commands).sort());
});

Deno.test("the layouts in README and examples are layouts", async () => {
  const [layout] = await readmeBlocks("json");
  assertEquals(parseLayout(JSON.parse(layout)).regions.length, 2);
  const scene = await Deno.readTextFile(`${root}/examples/scene.json`);
  assertEquals(parseLayout(JSON.parse(scene)).count, 4);
});

Deno.test("files that README links to are there", async () => {
  const links = [...readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)]
    .map(([, path]) => path);
  assertStringIncludes(links.join(), "ARCHITECTURE.md");
  for (const path of links) assert(await exists(path), `${path} is not there`);
});

Deno.test("README's table of memory is what is counted", async () => {
  const row = readme.split("\n").find((line) =>
    line.startsWith("| train ED-LoRA, batch 1")
  )!;
  const cells = row.split("|").slice(2, -1).map(Number);
  assertEquals(cells.length, 9);
  const configs = await modelConfigs({ model: "sd15" });
  await selectBackend("cpu");
  const { bytes } = await trainingMemory(configs, {
    method: method("ed-lora", "paper", { batch: 1 }),
    height: 512,
    width: 512,
    memory: "low",
    half: true,
    encoding: true,
  });
  assertEquals((bytes / 1e9).toFixed(1), cells[2].toFixed(1));
});
