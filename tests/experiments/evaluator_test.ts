import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  EVALUATOR_RECORD,
  type EvaluatorRecord,
  testEvaluator,
} from "../../src/experiments/evaluator.ts";
import { settingsOf } from "../../src/experiments/presets.ts";
import { EMBEDDED as model } from "../../src/cli/models.ts";
import { joinPath, readJson, writeJson } from "../../src/io/files.ts";
import { type Lab, withLab } from "../../src/lab/lab.ts";
import { nowhere } from "../../src/lab/runner.ts";
import { inFolder } from "../helpers.ts";

const { sampling } = settingsOf({});

/** A lab of the embedded model that does no work. */
function idle(use: (lab: Lab) => Promise<void>): Promise<void> {
  return inFolder((store) =>
    withLab({
      ...{ model, clip: `${model}/clip_b`, store },
      ...{ backend: "cpu", workers: 0, runner: nowhere },
    }, use)
  );
}

Deno.test("the embedded model's evaluator needs no new test", async () => {
  await idle(async (lab) => {
    const { line, failures } = await testEvaluator(lab, sampling);
    assertMatch(
      line,
      /^The evaluator clip_b \([0-9a-f]{8}\) passes its test\.$/,
    );
    assertEquals(failures, []);
  });
});

Deno.test("a stored test of another evaluator, or of other pictures, does not count", async () => {
  await idle(async (lab) => {
    const untested = async (lab: Lab, own = sampling) => {
      const { line, failures } = await testEvaluator(lab, own);
      assert(line.includes("was not tested"), line);
      assertEquals(failures, null);
    };
    await untested({ ...lab, hashes: { ...lab.hashes, clip: "0".repeat(64) } });
    await untested({
      ...lab,
      hashes: { ...lab.hashes, model: "0".repeat(64) },
    });
    await untested(lab, { ...sampling, steps: sampling.steps + 1 });
  });
});

Deno.test("the verdict is that of the stored test", async () => {
  await inFolder(async (folder) => {
    const record = await readJson<EvaluatorRecord>(
      joinPath(model, EVALUATOR_RECORD),
    );
    const check = { ...record.check, failures: ["It sees no shape."] };
    await writeJson(joinPath(folder, EVALUATOR_RECORD), { ...record, check });
    await idle(async (lab) => {
      const folders = { ...lab.folders, model: folder };
      const found = await testEvaluator({ ...lab, folders }, sampling);
      assertEquals(found.failures, ["It sees no shape."]);
      assert(found.line.includes("FAILS ITS TEST: It sees no shape."));
    });
  });
});
