import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  EVALUATOR_RECORD,
  type EvaluatorRecord,
  testEvaluator,
} from "../../src/experiments/evaluator.ts";
import { settingsOf } from "../../src/experiments/presets.ts";
import { embeddedModel } from "../../src/models/embedded.ts";
import { joinPath, readJson, writeJson } from "../../src/io/files.ts";
import { type Lab, withLab } from "../../src/lab/lab.ts";
import { nowhere } from "../../src/lab/runner.ts";
import { fileURLToPath } from "node:url";

const model = fileURLToPath(embeddedModel).replace(/\/$/, "");
const { sampling } = settingsOf({});

/** A lab of the embedded model that does no work. */
async function idle<T>(use: (lab: Lab) => Promise<T>): Promise<T> {
  const store = await Deno.makeTempDir();
  try {
    return await withLab({
      ...{ model, clip: `${model}/clip_b`, store },
      ...{ backend: "cpu", workers: 0, runner: nowhere },
    }, use);
  } finally {
    await Deno.remove(store, { recursive: true });
  }
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
  const folder = await Deno.makeTempDir();
  try {
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
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
