/**
 * The ablation: runs Table 2, seed by seed, and gathers its numbers.
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import type { Lab } from "../../lab/lab.ts";
import { NotInStore } from "../../lab/runner.ts";
import { experiment, type Outcome } from "../experiment.ts";
import { conceptPictures } from "../pictures.ts";
import { TEST_CONCEPTS } from "../presets.ts";
import { oneDomain, type Subject, subjects } from "../subjects.ts";
import {
  ABLATION_OPTIONS,
  type AblationPlan,
  type AblationWork,
  drawTable2,
  FUSIONS,
} from "./draw.ts";
import type { AblationNumbers } from "./json.ts";
import { numbersOf } from "./numbers.ts";
import { ablationReport, armLabel } from "./table.ts";

/** Weight against gradient fusion, LoRA against ED-LoRA. */
export const table2 = experiment({
  name: "ablation",
  also: ["table2"],
  summary: "The paper's Table 2: LoRA and ED-LoRA, weight and gradient fusion",
  about: `Trains concepts as LoRA and as ED-LoRA, fuses them by weight and by
gradient, draws pictures before and after, scores them, and writes a report. The
default is 5 concepts, 5 prompts each, one seed, and the paper's arms.`,
  notes:
    `A stopped run continues where it was. Every run is recorded in runs.json
of its output folder before it starts. Concepts that the base model can draw
itself (niko, finn, ulla, zara) must be named in --concepts and are never averaged
with the others.`,
  options: ABLATION_OPTIONS,
  scales: {
    quick: {
      help: "2 concepts, 2 prompts: smoke test, no conclusion",
      plan: { concepts: TEST_CONCEPTS.slice(0, 2), prompts: 2 },
    },
    full: {
      help: "12 concepts, 20 prompts, 3 seeds, and sums with a tuned λ",
      plan: {
        concepts: TEST_CONCEPTS,
        prompts: 20,
        seeds: [0, 1, 2],
        fusions: FUSIONS,
      },
    },
  },
  check: ({ concepts }) => oneDomain(concepts),
  stored: ({ partial }) => partial,
  run: ablation,
});

/**
 * Runs the ablation, seed by seed. Results in the lab's store are not computed
 * again, so a killed run continues. The number of workers does not change the
 * results.
 */
async function ablation(
  lab: Lab,
  plan: AblationPlan,
): Promise<Outcome<AblationNumbers>> {
  const { concepts, prompts, settings } = plan;
  const work: AblationWork = { trained: [], fused: [], drawn: [] };
  const seeds: number[] = [];
  let all: Subject[] = [];
  for (const seed of plan.seeds) {
    try {
      // The base model draws pictures of in-domain concepts here.
      if (all.length === 0) {
        all = await subjects(lab, concepts, prompts, settings.sampling);
      }
      const own = await drawTable2(lab, { ...plan, seeds: [seed] }, all);
      // Scored after each seed, so that a stopped run has complete results for
      // its seeds.
      await numbersOf(lab, { ...plan, seeds: [seed] }, all, own);
      work.trained.push(...own.trained);
      work.fused.push(...own.fused);
      work.drawn.push(...own.drawn);
      seeds.push(seed);
    } catch (error) {
      if (!plan.partial || !(error instanceof NotInStore)) throw error;
    }
  }
  if (seeds.length === 0) {
    throw cannot("report on a part", "at least one finished seed", "none");
  }
  const planned = seeds.length < plan.seeds.length ? plan.seeds : undefined;
  const data = await numbersOf(lab, { ...plan, seeds, planned }, all, work);
  const pictures = await conceptPictures(
    lab,
    "ablation",
    work.drawn,
    (arm) => arm === "base" ? "base, class word" : armLabel(arm),
    plan.scale === "quick" ? 4 : 2,
  );
  return { data, report: ablationReport(data, pictures) };
}
