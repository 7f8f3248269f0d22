import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { optionName } from "../../src/cli/options.ts";
import { completedCommands, completionScript } from "./completions.ts";

const commands = completedCommands();

/** What bash offers at the end of a command line. */
async function offered(...words: string[]): Promise<string[]> {
  const script = `${completionScript("bash", commands)}
COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")})
COMP_CWORD=${words.length - 1}
_mix_of_show
printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { code, stdout, stderr } = await new Deno.Command("bash", {
    args: ["--norc", "-c", script],
  }).output();
  assertEquals(code, 0, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout).trim().split("\n");
}

Deno.test("bash offers commands, options, words and folders", async () => {
  assertEquals(await offered("deno", "task", "ev"), ["evaluate"]);
  assertEquals(
    await offered("deno", "task", "train", "--lr"),
    ["--lr-embedding", "--lr-text", "--lr-unet"],
  );
  assertEquals(
    await offered("deno", "task", "train", "--method", "lo"),
    ["lora"],
  );
  assertEquals(
    await offered("deno", "task", "sample", "--concept", "/et"),
    ["/etc"],
  );
  assertEquals(await offered("deno", "task", "train", "--steps", ""), [""]);
  assertEquals(await offered("deno", "run", "--lr"), [""]);
});

Deno.test("bash offers experiments and their options", async () => {
  const after = (...words: string[]) => offered("deno", "task", ...words);
  assertEquals(await after("experiment", "r"), ["ridge", "rank", "regions"]);
  assertEquals(await after("experiment", "rank", "--val"), ["--values"]);
  // The rank sweep has no --rank.
  assertEquals(await after("experiment", "rank", "--rank"), [""]);
  assertEquals(await after("experiment", "domain", "--method", "p"), ["p+"]);
  assertEquals(await after("ablation", "--fu"), ["--full", "--fusion"]);
});

Deno.test("every option of every command is in each script", () => {
  const [bash, zsh, fish] = (["bash", "zsh", "fish"] as const)
    .map((shell) => completionScript(shell, commands));
  assertStringIncludes(zsh, "bashcompinit");
  let seen = 0;
  for (const { name, options } of commands) {
    for (const [field, option] of Object.entries(options)) {
      if (option.argument) continue;
      const written = optionName(field, option);
      assertStringIncludes(bash, written);
      assert(
        fish.includes(
          `from ${name.split(" ").at(-1)}' -l ${written.slice(2)} `,
        ),
        `${name} ${written}`,
      );
      seen++;
    }
  }
  assert(seen > 80, `${seen}`);
});
