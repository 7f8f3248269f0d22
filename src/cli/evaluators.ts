/**
 * `deno task experiment evaluators`: a finished ablation by other evaluators.
 *
 * @module
 */
import { loadClipEvaluator } from "../evaluation/evaluator.ts";
import { loadMobileNet } from "../evaluation/outside_evaluator.ts";
import { comparisonTable } from "../experiments/ablation_figures.ts";
import { ablationSchema } from "../experiments/ablation_schema.ts";
import {
  evaluate,
  type Evaluation,
  planOf,
} from "../experiments/evaluators.ts";
import { joinPath, readJson, writeJson } from "../io/files.ts";
import { nowhere } from "../lab/runner.ts";
import { type Command, command } from "./command.ts";
import {
  inLab,
  LAB_OPTIONS,
  type LabRequest,
  labRequest,
} from "./lab_options.ts";
import { mustExist } from "./models.ts";
import { folder, listOf, optionTable } from "./options.ts";
import { decimal, textTable } from "../report/markdown.ts";

// Nothing is trained or drawn here.
const { workers: _w, queue: _q, store: _s, patience: _p, ...ONE_WORKER } =
  LAB_OPTIONS;

const OPTIONS = optionTable({
  clips: {
    type: listOf(folder),
    default: [],
    help: "folders of other CLIPs",
  },
  ...ONE_WORKER,
  out: {
    type: folder,
    default: "out/ablation",
    help: "the ablation's; evaluators.json goes there",
  },
});

/** What the command line asks for. */
export interface EvaluatorsRequest {
  readonly lab: LabRequest;
  readonly clips: readonly string[];
}

const WHAT = "evaluate an ablation again";

/** A finished ablation by other evaluators. */
export const evaluators: Command<EvaluatorsRequest> = command({
  name: "evaluators",
  summary: "A finished ablation by MobileNetV2 and by other CLIPs",
  usage: "deno task experiment evaluators [options]",
  about: `Image alignment of a finished ablation's pictures by nsfwjs'
MobileNetV2 (npm, 25 MB, downloaded when this is run) and by other CLIPs.`,
  options: OPTIONS,
  request: ({ clips, out, ...values }): EvaluatorsRequest => ({
    lab: labRequest(values, out),
    clips,
  }),
  async run({ lab: request, clips }) {
    const { out } = request;
    await mustExist(WHAT, ...clips);
    const report = await readJson(
      joinPath(out, "ablation.json"),
      ablationSchema,
    );
    await inLab(WHAT, request, async (lab, { backend, progress }) => {
      progress.line(backend.describe);
      const found: Evaluation[] = [];
      const total = report.rows.reduce((sum, { text }) => sum + text.length, 0);
      for (
        const open of [
          loadMobileNet,
          ...clips.map((f) => () => loadClipEvaluator(f)),
        ]
      ) {
        using evaluator = await open();
        found.push(
          await evaluate(
            lab,
            planOf(report),
            evaluator,
            (done) => progress.update(evaluator.name, done, total, "image"),
          ),
        );
      }
      await writeJson(joinPath(out, "evaluators.json"), found);
      progress.finish();
      for (const { evaluator, image, ceiling, comparisons } of found) {
        console.log(`\n${evaluator}`);
        console.log(textTable({
          head: ["arm", "image"],
          rows: [
            ...Object.entries(image)
              .map(([arm, value]) => [arm, decimal(value)]),
            ["references themselves", decimal(ceiling)],
          ],
        }));
        for (const paper of [true, false]) {
          console.log(paper ? "The paper's claims" : "Beyond the paper");
          console.log(
            textTable(
              comparisonTable({ comparisons: [...comparisons] }, paper),
            ),
          );
        }
      }
      console.log(joinPath(out, "evaluators.json"));
    }, { runner: nowhere });
  },
});
