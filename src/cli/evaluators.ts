/**
 * `deno task experiment evaluators`: a finished ablation by other evaluators.
 *
 * @module
 */
import { comparisonTable } from "../evaluation/compare.ts";
import { evaluatorVerdict } from "../evaluation/evaluator_check.ts";
import { loadClipEvaluator } from "../evaluation/evaluator.ts";
import { loadMobileNet } from "../evaluation/outside_evaluator.ts";
import { readAblation } from "../experiments/table2/json.ts";
import {
  ablationPlan,
  checkOther,
  evaluate,
  type Evaluation,
  evaluationTable,
} from "../experiments/evaluators.ts";
import { classPictures } from "../experiments/evaluator.ts";
import { joinPath, readJson } from "../io/files.ts";
import { nowhere } from "../lab/runner.ts";
import { reportText, tablePart, writeReport } from "../report/document.ts";
import { terminalColumns } from "./progress.ts";
import { type Command, command } from "./command.ts";
import {
  inLab,
  LAB_OPTIONS,
  type LabRequest,
  labRequest,
} from "./lab_options.ts";
import { mustExist } from "./models.ts";
import { folder, listOf, optionTable } from "./options.ts";

// Nothing is trained here.
const { workers: _w, queue: _q, store: _s, patience: _p, ...ONE_WORKER } =
  LAB_OPTIONS;

const OPTIONS = optionTable({
  clips: {
    type: listOf(folder),
    default: [],
    otherwise: "none",
    help: "folders of other CLIPs",
  },
  ...ONE_WORKER,
  out: {
    type: folder,
    default: "out/ablation",
    help: "folder of the ablation; evaluators.json is written there",
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
  about: `Scores a finished ablation's pictures for image alignment by nsfwjs'
MobileNetV2 (npm, 25 MB, downloaded when this is run) and by other CLIPs.`,
  options: OPTIONS,
  request: ({ clips, out, ...values }): EvaluatorsRequest => ({
    lab: labRequest(values, out),
    clips,
  }),
  async run({ lab: request, clips }) {
    const { out } = request;
    await mustExist(WHAT, ...clips);
    const report = readAblation(
      await readJson(joinPath(out, "ablation.json")),
    );
    const plan = ablationPlan(report);
    // The ablation has none where its evaluator's test is stored with the model.
    await inLab(
      WHAT,
      request,
      (lab) => classPictures(lab, plan.settings.sampling),
    );
    await inLab(WHAT, request, async (lab, { backend, progress }) => {
      progress.line(backend.describe);
      const found: Evaluation[] = [];
      const lead: string[] = [];
      const total = report.rows.reduce((sum, { text }) => sum + text.length, 0);
      for (
        const open of [
          loadMobileNet,
          ...clips.map((f) => () => loadClipEvaluator(f)),
        ]
      ) {
        using evaluator = await open();
        const check = await checkOther(lab, evaluator, plan.settings.sampling);
        lead.push(evaluatorVerdict(evaluator.name, check));
        const show = (done: number) =>
          progress.update(evaluator.name, done, total, "image");
        found.push(await evaluate(lab, plan, evaluator, show));
      }
      const whole = {
        name: "evaluators",
        title: "an ablation's pictures by other evaluators",
        lead,
        parts: found.flatMap((one) => [
          tablePart(evaluationTable(one), one.evaluator),
          tablePart(comparisonTable(one)),
        ]),
      };
      await writeReport(out, whole, found);
      progress.finish();
      console.log(`\n${reportText(whole, terminalColumns())}`);
      console.log(`${joinPath(out, "evaluators.html")}  (also .json, .md)`);
    }, { runner: nowhere });
  },
});
