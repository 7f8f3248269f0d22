/**
 * The ablation's report as Markdown and as a self-contained HTML page.
 *
 * @module
 */
import type { Pixels } from "../io/png.ts";
import { inDomain } from "../micro/in_domain.ts";
import {
  ablationFigures,
  ablationTable,
  armLabel,
  comparisonTable,
} from "../experiments/ablation_figures.ts";
import type { AblationReport } from "../experiments/ablation_schema.ts";
import {
  details,
  figure,
  heading,
  type Html,
  page,
  paragraph,
  pictureGrid,
  table,
} from "../report/html.ts";
import { decimal, markdownTable } from "../report/markdown.ts";
import { duration } from "./progress.ts";

/** Pictures of one prompt, by arm. */
export interface PictureRow {
  /** Concept and prompt. */
  readonly label: string;
  /** By arm. */
  readonly cells: ReadonlyMap<string, Pixels>;
}

/** What was run, in a few lines. */
function facts(report: AblationReport): string[] {
  const { concepts, seeds, prompts, machine, timings, capacity } = report;
  const range = (values: readonly number[]) =>
    values.map((value) => decimal(value, 2)).join(" to ");
  const inside = concepts.filter(({ name }) => inDomain(name)).length;
  const lines = [
    `${concepts.length} ${inside > 0 ? "in-domain " : ""}concepts (${
      concepts.map(({ name, class: word }) => `${name}: ${word}`).join(", ")
    }), ${prompts.perConcept} prompts each, seed ${
      seeds.join(", ")
    }; ${machine.backend}, ${machine.workers} workers, ${
      duration(timings.total)
    } for this run (what was in its cache is not counted).`,
    `Capacity n·r/d: ${capacity.n}·${capacity.rank}/d = ${
      range(capacity.unet)
    } in the UNet, ${
      range(capacity.textEncoder)
    } in the text encoder (SD 1.5 with 14 concepts of rank 4: at most 0.18).`,
    `Bounds of text alignment: ${
      decimal(report.base.unrelated?.mean ?? NaN)
    } for captions of other prompts, ${
      decimal(report.base.lower.text.mean ?? NaN)
    } for the class word on the base model; of the other scores: the class ` +
    "word on the base model, and the references among themselves.",
    `Evaluation CLIP: SHA-256 ${report.hashes.clip}.`,
    `Retrieval among ${report.retrieval.gallery.length} identities and ` +
    `look-alikes: chance is ${decimal(report.retrieval.chance)}.`,
  ];
  for (const [embedding, d] of Object.entries(report.distinguishability)) {
    if (d.after.mean === null) continue;
    lines.push(
      `Cosine between two concepts' learned V (${
        armLabel(embedding)
      }, first seed): mean ${decimal(d.before.mean ?? NaN)} before, ${
        decimal(d.after.mean)
      } after training, largest ${decimal(d.after.max ?? NaN)}.`,
    );
  }
  const drifts = Object.entries(report.drift)
    .map(([arm, value]) => `${armLabel(arm)} ${decimal(value ?? NaN)}`);
  lines.push(
    `Drift of the base on concept-free prompts (1 − cosine, same noise): ${
      drifts.join(", ")
    }.`,
  );
  return lines;
}

/** Why no conclusion can be drawn from a run, if none can. */
function reservations(
  { scale, concepts, seeds, planned, headroom }: AblationReport,
): string[] {
  const reasons = [
    scale === "quick" && "a few concepts and prompts show only that all runs",
    concepts.length < 2 && "with one concept there is nothing to fuse",
    !headroom.enough &&
    `the median concept gains ${
      decimal(headroom.median ?? NaN)
    } image alignment over the class word, less than ${headroom.required}`,
    planned &&
    `seeds ${seeds.join(", ")} of the planned ${planned.join(", ")} are there`,
  ];
  return reasons.flatMap((why) => why ? [`No conclusion: ${why}.`] : []);
}

/** Which seconds a fusion took. */
function fusionTimes(report: AblationReport): string {
  const times = Object.entries(report.arms)
    .map(([arm, { fusionSeconds }]) =>
      `${armLabel(arm)} ${decimal(fusionSeconds ?? NaN, 1)} s`
    );
  return `Time of fusion: ${times.join(", ")}.`;
}

/**
 * The report as Markdown.
 *
 * @param report The report.
 */
export function ablationMarkdown(report: AblationReport): string {
  return [
    "# Ablation: weight against gradient fusion, LoRA against ED-LoRA",
    "",
    ...reservations(report).flatMap((line) => [line, ""]),
    "Single concept → fused. Intervals and all numbers are in `ablation.json`.",
    "",
    markdownTable(ablationTable(report)),
    "## The paper's claims",
    "",
    markdownTable(comparisonTable(report, true)),
    "## Beyond the paper",
    "",
    markdownTable(comparisonTable(report, false)),
    "## What was run",
    "",
    ...facts(report).map((line) => `- ${line}`),
    `- ${fusionTimes(report)}`,
    "",
  ].join("\n");
}

/**
 * The report as a page with figures and pictures.
 *
 * @param report The report.
 * @param pictures Rows of pictures of the same noise.
 */
export async function ablationHtml(
  report: AblationReport,
  pictures: readonly PictureRow[],
): Promise<string> {
  const arms = [...new Set(pictures.flatMap(({ cells }) => [...cells.keys()]))];
  const parts: Html[] = [
    ...reservations(report).map(paragraph),
    table(ablationTable(report)),
    heading("Same noise in every column"),
    ...(pictures.length === 0 ? [] : [pictureGrid(
      ["reference", ...arms.filter((arm) => arm !== "reference")].map((arm) =>
        arm === "reference"
          ? arm
          : arm === "base"
          ? "base, class word"
          : armLabel(arm)
      ),
      pictures.map(({ label, cells }) => ({
        label,
        cells: ["reference", ...arms.filter((arm) => arm !== "reference")]
          .map((arm) => cells.get(arm)),
      })),
    )]),
    heading("Scores"),
    ...ablationFigures(report).map(([id, plot]) => figure(id, plot)),
    heading("The paper's claims"),
    table(comparisonTable(report, true)),
    heading("Beyond the paper"),
    table(comparisonTable(report, false)),
    heading("What was run"),
    ...facts(report).map(paragraph),
    paragraph(fusionTimes(report)),
    details("Settings", JSON.stringify(report.settings, null, 2)),
  ];
  return await page("Mix-of-Show: ablation on the embedded model", parts);
}
