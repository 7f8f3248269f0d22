/**
 * What the tests of the package share: a server on this machine, the behaviours
 * as JavaScript, and the comparison with what Deno's own run gave.
 *
 * @module
 */
// Of its own lock file: nobody else needs it.
// deno-lint-ignore no-import-prefix
import * as esbuild from "npm:esbuild@0.28.2";
import { root } from "../tools/repository.ts";

/** How one behaviour ended. */
export interface Outcome {
  /** What should hold. */
  readonly name: string;
  /** What it returned, if it held. */
  readonly value?: string;
  /** Why it did not. */
  readonly error?: string;
}

/** The behaviours as a module of JavaScript. */
export async function behavioursModule(): Promise<string> {
  const { outputFiles } = await esbuild.build({
    entryPoints: [`${root}/tests/platform/behaviours.ts`],
    bundle: true,
    format: "esm",
    target: "es2022",
    write: false,
  });
  await esbuild.stop();
  return outputFiles[0].text;
}

/** What Deno gives: the outcomes of the same list on the source. */
export async function denoOutcomes(): Promise<Outcome[]> {
  const mos = await import("../../mod.ts");
  const { behaviours } = await import("./behaviours.ts");
  const outcomes: Outcome[] = [];
  for (
    const { name, run } of behaviours({
      mos,
      model: new URL("../../models/micro", import.meta.url).href,
      pictures: new URL("../fixtures/pictures/", import.meta.url).href,
    })
  ) {
    try {
      const value = await run();
      outcomes.push({ name, ...(value === undefined ? {} : { value }) });
    } catch (error) {
      outcomes.push({ name, error: `${(error as Error).stack}` });
    }
  }
  return outcomes;
}

/**
 * Prints outcomes, each compared with Deno's, and counts them.
 *
 * @param where Where they ran.
 * @param outcomes There.
 * @param expected In Deno.
 */
export function report(
  where: string,
  outcomes: readonly Outcome[],
  expected: readonly Outcome[],
): { passed: number; failed: number } {
  let [passed, failed] = [0, 0];
  for (const [i, { name, value }] of expected.entries()) {
    const got = outcomes[i];
    const problem = !got
      ? "it did not run"
      : got.error ?? (expected[i].error
        ? `in Deno: ${expected[i].error}`
        : got.name !== name
        ? `another one: ${got.name}`
        : got.value !== value
        ? `expected Deno's ${value}, got ${got.value}`
        : undefined);
    if (problem === undefined) passed++;
    else failed++;
    console.log(
      `${problem === undefined ? "ok    " : "FAILED"} ${where}: ${name}` +
        (value && !problem ? ` (${value.slice(0, 40)})` : ""),
    );
    if (problem) console.log(`       ${problem}`);
  }
  return { passed, failed };
}
