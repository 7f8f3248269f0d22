import { assert, assertEquals } from "@std/assert";
import { root, runDeno } from "./repository.ts";

const { tasks } = JSON.parse(
  await Deno.readTextFile(`${root}/deno.json`),
) as { tasks: Record<string, { command: string }> };

// Deno answers `bench --help` itself; the art tool's packages are big.
const others = new Set(["bench", "art"]);

/** Runs a task with what it must not do denied. */
const ask = (command: string, arg: string) => {
  const words = command.split(" ").slice(2)
    .filter((word) => word !== "-q" && !/^-P|^--lock/.test(word));
  return runDeno([
    ...["run", "-q", "--no-check", "--no-lock", "--no-prompt", "--allow-read"],
    ...["--allow-env", "--allow-sys", "--deny-write", "--deny-run"],
    ...["--deny-net", ...words, arg],
  ]);
};

for (const [name, { command }] of Object.entries(tasks)) {
  if (others.has(name)) continue;
  Deno.test(`${name} --help prints help and does nothing else`, async () => {
    const { code, stdout, stderr } = await ask(command, "--help");
    assertEquals(code, 0, stderr);
    assert(stdout.includes(`deno task ${name}`), stdout);
    assert(stdout.includes("--help"), stdout);
    // A line that is too long breaks in a terminal.
    for (const line of stdout.split("\n")) assert(line.length <= 80, line);
    assertEquals((await ask(command, "-h")).stdout, stdout);
  });
}

// Theirs go to another program.
const passing = new Set(["test", "paper"]);

for (const [name, { command }] of Object.entries(tasks)) {
  if (others.has(name) || passing.has(name)) continue;
  Deno.test(`${name} refuses what it does not know`, async () => {
    const { code, stdout, stderr } = await ask(command, "--odd");
    assertEquals([code, stdout], [2, ""], stderr);
    assert(/^Cannot .*--odd\n$/.test(stderr), stderr);
  });
}

Deno.test("values of maintainers' tasks are checked before work", async () => {
  for (
    const [file, arg, message] of [
      ["tools/fullsize.ts", "--size=65", "--size a multiple of 64"],
      ["tools/fullsize.ts", "--parts=uvet", "--parts unet, decoder, train"],
      ["tools/fullsize.ts", "--outputs=a.bin", "--outputs with the ending"],
      ["bench/memory.ts", "--steps=15", "--steps a multiple of 10"],
      ["bench/scale.ts", "--one=regions:0", "--one concepts, regions"],
    ]
  ) {
    const { code, stderr } = await ask(`deno run ${root}/tests/${file}`, arg);
    assertEquals(code, 2, stderr);
    assert(stderr.includes(message), stderr);
  }
  const { code, stderr } = await runDeno(
    [
      "run",
      "-q",
      "--no-check",
      "--no-lock",
      "-A",
      `${root}/tests/tools/paper.ts`,
      "--odd",
    ],
  );
  assertEquals(code, 2);
  assertEquals(stderr.trim().split("\n").length, 1, stderr);
});
