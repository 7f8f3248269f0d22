/**
 * Tables of Figure 3.
 *
 * @module
 */
import type { ScoreEstimate } from "./ablation_schema.ts";
import type { Table } from "../report/markdown.ts";
import { domainLabel, type DomainReport } from "./fig3.ts";

function text(value: number | null): string {
  return value === null ? "–" : value.toFixed(3).replace("-", "−");
}

/** A number with its interval, where it has one. */
function interval({ mean, low, high }: ScoreEstimate): string {
  if (mean === null) return "";
  return low === null || high === null
    ? text(mean)
    : `${text(mean)} (${text(low)} to ${text(high)})`;
}

/**
 * The rows as a table.
 *
 * @param report The report.
 */
export function domainTable(report: DomainReport): Table {
  return {
    head: [
      "domain",
      "",
      "text",
      "image",
      "masked image",
      "retrieval",
      "image above the class word",
    ],
    rows: report.rows.map((row) => [
      row.domain,
      domainLabel(row),
      text(row.text),
      text(row.image),
      text(row.masked),
      text(row.retrieval),
      interval(row.gain),
    ]),
  };
}

/**
 * How much of a concept its embedding alone holds, as a table.
 *
 * @param report The report.
 */
export function shareTable(report: DomainReport): Table {
  return {
    head: ["domain", "method", "share of the gain at α = 0"],
    rows: report.shares.map(({ domain, method, share }) => [
      domain,
      domainLabel({ method, alpha: null, fusion: "none" }),
      interval(share),
    ]),
  };
}
