/**
 * What the experiments' commands have in common: a lab is opened, the experiment
 * runs, its evaluator is tested, its report is written.
 *
 * @module
 */
import { testEvaluator } from "../experiments/evaluator.ts";
import type { ExperimentPreset } from "../experiments/presets.ts";
import { joinPath } from "../io/files.ts";
import type { Lab } from "../lab/lab.ts";
import type { Runner } from "../lab/runner.ts";
import { type Report, reportText, writeReport } from "../report/document.ts";
import { type Command, command } from "./command.ts";
import { inLab, type LabRequest, type Machine } from "./lab_options.ts";
import type { OptionTable, Values } from "./options.ts";

/** What an experiment gives. */
export interface Outcome {
  /** The report. */
  readonly report: Report;
  /** The numbers behind it, an object. */
  readonly data: object;
  /** A line for the terminal. */
  readonly note?: string;
}

/** An experiment as a command. */
export interface ExperimentParts<T extends OptionTable, R> {
  /** Its name. */
  readonly name: string;
  /** What it does, in a line. */
  readonly summary: string;
  /** What it does, in a paragraph. */
  readonly about: string;
  /** What stands behind the options in help. */
  readonly notes?: string;
  /** The options. */
  readonly options: T;
  /** Checks options against each other and makes the request. */
  readonly request: (values: Values<T>) => R;
  /** Finds what the lab needs besides; what fails here fails before work. */
  readonly prepare?: (request: R) => Promise<Extras>;
  /** Runs it. */
  readonly run: (lab: Lab, request: R, machine: Machine) => Promise<Outcome>;
}

/** What a lab needs besides its request. */
export interface Extras {
  /** Folders of condition networks by name. */
  readonly networks?: Readonly<Record<string, string>>;
  /** Another runner than the request's. */
  readonly runner?: Runner;
}

/** What every experiment's command line asks for. */
export interface ExperimentRequest {
  /** Where models, results and work are. */
  readonly lab: LabRequest;
  /** What is run; the evaluator is tested with its sampling. */
  readonly plan: { readonly settings: ExperimentPreset };
}

/**
 * Makes a command of an experiment.
 *
 * @param parts What it is.
 */
export function experiment<
  const T extends OptionTable,
  R extends ExperimentRequest,
>(parts: ExperimentParts<T, R>): Command<R> {
  const { prepare, run, ...own } = parts;
  return command({
    ...own,
    usage: `deno task experiment ${own.name} [options]`,
    async run(request) {
      const extras = await prepare?.(request);
      const what = `run the ${own.name} experiment`;
      await inLab(what, request.lab, async (lab, machine) => {
        machine.progress.line(machine.describe);
        await publish(lab, request, machine, await run(lab, request, machine));
      }, extras);
    },
  });
}

/**
 * Writes an experiment's report and says where it is. Its first line says
 * whether the evaluator passes its test.
 *
 * @param lab The lab.
 * @param request Where the report goes.
 * @param machine The progress bar.
 * @param outcome The report and its numbers.
 */
export async function publish(
  lab: Lab,
  { lab: { out }, plan }: ExperimentRequest,
  { progress }: Machine,
  { report, data, note }: Outcome,
): Promise<void> {
  const evaluator = await testEvaluator(lab, plan.settings.sampling);
  const whole = { ...report, lead: [evaluator.line, ...report.lead] };
  await writeReport(out, whole, { ...data, evaluator });
  progress.finish();
  console.log(`\n${reportText(whole)}`);
  if (note) console.log(note);
  console.log(
    `${joinPath(out, `${report.name}.html`)}  (also .json, .md, .png)`,
  );
}
