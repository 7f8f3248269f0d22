import { assertRejects } from "@std/assert";
import { main } from "../../src/cli/experiment.ts";

Deno.test("files of an experiment are checked before work starts", async () => {
  const file = await Deno.makeTempFile({ suffix: ".json" });
  try {
    for (
      const [args, content, message] of [
        [["tune", "--variants"], { A: { stpes: 3 } }, "A: Unrecognized key"],
        [["tune", "--variants"], { A: { steps: 0.5 } }, "A.steps"],
        [["ridge", "--templates"], ["photo of a"], "{}"],
        [["lambda", "--templates"], [], "fits its schema"],
      ] as const
    ) {
      await Deno.writeTextFile(file, JSON.stringify(content));
      await assertRejects(() => main([...args, file]), Error, message);
    }
    await assertRejects(
      () => main(["ridge", "--crowd", "nobody"]),
      Error,
      "Cannot find a concept",
    );
  } finally {
    await Deno.remove(file);
  }
});
