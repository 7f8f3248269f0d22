/**
 * `deno task micro:evaluator`: tests the evaluation CLIP of the embedded model
 * and stores the outcome beside it, so that reports need not test it again.
 *
 * @module
 */
import { inLab, labRequest } from "../../src/cli/lab_options.ts";
import { EMBEDDED } from "../../src/cli/models.ts";
import {
  EVALUATOR_RECORD,
  type EvaluatorRecord,
  recordEvaluator,
} from "../../src/experiments/evaluator.ts";
import { settingsOf } from "../../src/experiments/presets.ts";
import { joinPath, readJson, writeJson } from "../../src/io/files.ts";
import { emptyStore } from "../../src/lab/store.ts";
import { helped, onlyKnown } from "./help.ts";

const HELP = `
deno task micro:evaluator [--check]

Tests the embedded model's evaluation CLIP (one minute on two cores) and writes
the outcome to models/micro/${EVALUATOR_RECORD}.

  --check  compare it with the stored one; write nothing
  --help   this text
`;

/**
 * Largest difference of a number from the stored one: pictures differ slightly
 * between backends.
 */
const TOLERANCE = 0.01;

/** Paths of numbers and texts that differ. */
function differences(a: unknown, b: unknown, path = ""): string[] {
  if (typeof a === "number" && typeof b === "number") {
    return Math.abs(a - b) <= TOLERANCE ? [] : [`${path}: ${b}, stored ${a}`];
  }
  if (typeof a !== "object" || typeof b !== "object" || !a || !b) {
    return a === b ? [] : [`${path}: ${b}, stored ${a}`];
  }
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...keys].flatMap((key) =>
    differences(
      a[key as keyof typeof a],
      b[key as keyof typeof b],
      path ? `${path}.${key}` : key,
    )
  );
}

if (import.meta.main && !helped(HELP)) {
  onlyKnown("test the embedded model's evaluator", "--check");
  const file = joinPath(EMBEDDED, EVALUATOR_RECORD);
  const request = labRequest({ backend: "wasm" }, "out/micro-evaluator");
  // An outcome in the store may be older than the code.
  await emptyStore(request.store);
  const made = await inLab(
    "test the embedded model's evaluator",
    request,
    (lab) => recordEvaluator(lab, settingsOf({}).sampling),
  );
  if (Deno.args.includes("--check")) {
    const found = differences(await readJson<EvaluatorRecord>(file), made);
    for (const line of found) console.log(line);
    console.log(
      found.length === 0 ? "1 passed, 0 failed" : "0 passed, 1 failed",
    );
    Deno.exitCode = found.length === 0 ? 0 : 1;
  } else {
    await writeJson(file, made);
    console.log(file);
  }
}
