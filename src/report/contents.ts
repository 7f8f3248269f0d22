/**
 * A page that lists reports.
 *
 * @module
 */
import { heading, page, paragraph, table } from "./html.ts";
import type { Table } from "./table.ts";
import { escapeHtml } from "./text.ts";

/** A report in the list. */
export interface ReportEntry {
  /** Its name. */
  readonly name: string;
  /** What it shows, in a line. */
  readonly summary: string;
  /** Its page, relative to the list; nothing while there is none. */
  readonly href?: string;
  /** Training seeds. */
  readonly seeds: string;
  /** Verdicts on its claims. */
  readonly verdict: string;
  /** Duration, or progress. */
  readonly time: string;
}

/**
 * The list as a page that opens without a network.
 *
 * @param title Heading of the page.
 * @param lead Lines under the title.
 * @param entries The reports.
 * @param claims Every claim of theirs.
 */
export async function contentsHtml(
  title: string,
  lead: readonly string[],
  entries: readonly ReportEntry[],
  claims?: Table,
): Promise<string> {
  const cell = (html: string) => `<td>${html}</td>`;
  const rows = entries.map(({ name, summary, href, seeds, verdict, time }) => {
    const label = escapeHtml(name);
    const linked = href === undefined
      ? label
      : `<a href="${escapeHtml(href)}">${label}</a>`;
    const texts = [summary, seeds, verdict, time].map(escapeHtml);
    return `<tr>${[linked, ...texts].map(cell).join("")}</tr>`;
  });
  const head = ["report", "shows", "seeds", "claims", "time"]
    .map((text) => `<th>${text}</th>`).join("");
  return await page(title, [
    ...lead.map(paragraph),
    {
      html: `<div class="scroll"><table><thead><tr>${head}</tr></thead><tbody>${
        rows.join("")
      }</tbody></table></div>`,
    },
    ...(claims ? [heading("Every claim"), table(claims)] : []),
  ]);
}

/**
 * How often each verdict was given: `3 reproduced, 1 not shown`.
 *
 * @param comparisons Tested claims.
 */
export function verdictCounts(
  comparisons: readonly { readonly verdict: string }[],
): string {
  const counts = Map.groupBy(comparisons, ({ verdict }) => verdict);
  return [...counts].map(([verdict, all]) => `${all.length} ${verdict}`)
    .join(", ");
}
