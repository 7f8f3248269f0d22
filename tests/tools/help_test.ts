import { assert, assertEquals } from "@std/assert";
import { root, runDeno } from "./repository.ts";

const { tasks } = JSON.parse(
  await Deno.readTextFile(`${root}/deno.json`),
) as { tasks: Record<string, { command: string }> };

// Deno answers `bench --help` itself; the art tool's packages are big.
const others = new Set(["bench", "art"]);

for (const [name, { command }] of Object.entries(tasks)) {
  if (others.has(name)) continue;
  Deno.test(`${name} --help prints help and does nothing else`, async () => {
    const words = command.split(" ").slice(2)
      .filter((word) => word !== "-q" && !/^-P|^--lock/.test(word));
    const { code, stdout, stderr } = await runDeno([
      ...["run", "-q", "--no-check", "--no-prompt", "--allow-read"],
      // What it must not do it cannot do.
      ...["--allow-env", "--allow-sys", "--deny-write", "--deny-run"],
      ...["--deny-net", ...words, "--help"],
    ]);
    assertEquals(code, 0, stderr);
    assert(stdout.includes(`deno task ${name}`), stdout);
    assert(stdout.includes("--help"), stdout);
  });
}

Deno.test("maintainers' tasks refuse what they do not know", async () => {
  for (const file of ["ok.ts", "fullsize.ts", "notebook_run.ts"]) {
    const { code, stderr } = await runDeno(
      ["run", "-q", "--no-check", "-A", `${root}/tests/tools/${file}`, "--odd"],
    );
    assert(code !== 0);
    assert(stderr.includes("--odd"), stderr);
  }
});
