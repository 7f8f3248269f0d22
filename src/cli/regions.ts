/**
 * `deno task experiment regions`: several concepts in one picture.
 *
 * @module
 */
import { fig5, type RegionPlan } from "../experiments/fig5/run.ts";
import { REGION_ARMS } from "../experiments/fig5/scenes.ts";
import { regionSheets } from "../experiments/fig5/sheets.ts";
import { type RegionReport, regionsReport } from "../experiments/fig5/table.ts";
import { exists, joinPath } from "../io/files.ts";
import { identityOf } from "../micro/concepts.ts";
import type { Command } from "./command.ts";
import { experiment, type ExperimentRequest } from "./experiment_command.ts";
import {
  LAB_OPTIONS,
  labRequest,
  SETTING_OPTIONS,
  settingsOf,
} from "./lab_options.ts";
import {
  flag,
  folder,
  listOf,
  number,
  oneOf,
  optionTable,
  parsed,
  whole,
} from "./options.ts";

const count = whole({ least: 1 });

const OPTIONS = optionTable({
  quick: { type: flag, help: "2 concepts, 1 picture: mechanics only" },
  concepts: {
    type: listOf(
      parsed("NAME", (_what, _option, name) => identityOf(name).name),
    ),
    otherwise: "kuro,lila,momo,raja,zorp",
    help: "names; all are fused into one model",
  },
  counts: {
    type: listOf(whole()),
    otherwise: "2,3,4",
    help: "concepts in a picture",
  },
  sets: { type: count, otherwise: "5", help: "choices of concepts per count" },
  backgrounds: {
    type: count,
    otherwise: "2",
    help: "backgrounds of each choice",
  },
  pictures: { type: count, otherwise: "4", help: "pictures of each layout" },
  column: {
    type: count,
    default: 64,
    help: "width of a concept's column in pixels: 32, 48 or 64",
  },
  arms: {
    type: listOf(oneOf(REGION_ARMS)),
    otherwise: "all",
    help: REGION_ARMS.join(", "),
  },
  scales: {
    type: listOf(number()),
    otherwise: "1.5,2",
    help: "resolutions of the resolution study",
  },
  seed: { type: whole(), default: 0, help: "seed of training and noise" },
  sketch: {
    type: folder,
    otherwise: "the model's, if it has one",
    help: "sketch T2I-Adapter",
  },
  noTiming: { type: flag, help: "do not time pictures with regions" },
  ...SETTING_OPTIONS,
  ...LAB_OPTIONS,
  out: { type: folder, otherwise: "out/regions", help: "where results go" },
});

/** What the command line asks for. */
export interface RegionRequest extends ExperimentRequest {
  /** Folder of a sketch adapter. */
  readonly sketch?: string;
  /** What is run. */
  readonly plan: RegionPlan;
}

/** Several concepts in one picture, measured. */
export const regions: Command<RegionRequest> = experiment({
  name: "regions",
  summary: "Several concepts in one picture: identity per region, leakage",
  about: `Several concepts in one picture: is each in its place, and only there?
Trains and fuses concepts, draws them with a plain prompt, with regions, and with
adapters that are not fused, and scores every region by the evaluation CLIP.`,
  notes: `Writes regions.json, .md, .html, regions-N.png (every arm, the first
scenes of N concepts), fig5.png (rendered, plain prompt, regions),
fig10-leakage.png (where the plain prompt mixes two or three concepts most, and
negative prompts) and fig10-resolution.png. The evaluation CLIP names each column
below a picture. On two cores the default takes about half an hour; a run that was
stopped continues.`,
  options: OPTIONS,
  request: ({ quick, out, ...values }): RegionRequest => ({
    lab: labRequest(
      values,
      out ?? (quick ? "out/regions-quick" : "out/regions"),
    ),
    sketch: values.sketch,
    plan: {
      concepts: values.concepts ??
        (quick ? ["kuro", "momo"] : ["kuro", "lila", "momo", "raja", "zorp"]),
      counts: values.counts ?? (quick ? [2] : [2, 3, 4]),
      column: values.column,
      sets: values.sets ?? (quick ? 1 : 5),
      backgrounds: values.backgrounds ?? (quick ? 1 : 2),
      pictures: values.pictures ?? (quick ? 1 : 4),
      seed: values.seed,
      arms: values.arms,
      scales: values.scales ?? (quick ? [] : [1.5, 2]),
      timing: !values.noTiming,
      settings: settingsOf(values),
    },
  }),
  async prepare({ lab: { model }, sketch: given }) {
    const own = joinPath(model, "adapter");
    const sketch = given ??
      (await exists(joinPath(own, "config.json")) ? own : undefined);
    const networks: Record<string, string> = sketch ? { sketch } : {};
    return { networks };
  },
  async run(lab, { plan }, { backend, workers, progress }) {
    const { sketch = "none, its arms are left out" } = lab.folders.networks!;
    progress.line(`${plan.concepts.join(", ")}; sketch adapter: ${sketch}`);
    const found = await fig5(lab, plan);
    const report: RegionReport = {
      ...found,
      settings: { ...found.settings, backend: backend.name, workers },
      created: new Date().toISOString(),
    };
    const sheets = await regionSheets(lab, report);
    return { report: regionsReport(report, sheets), data: report };
  },
});
