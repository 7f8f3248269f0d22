/**
 * Prints the table of options and their pairs of runs, as Markdown; the tests
 * run it (tests/cli/options_matter_test.ts).
 *
 * @example
 * ```sh
 * deno run -A tests/tools/option_table.ts > options.md
 * ```
 *
 * @module
 */
import { optionTableOf, pairsOf } from "../cli/option_pairs.ts";
import * as main from "../cli/option_rows.ts";
import * as lab from "../cli/option_rows_lab.ts";
import { worldAt } from "../cli/option_world.ts";

const world = worldAt("W");
const all = [...Object.values(main), ...Object.values(lab)]
  .flatMap((rows) => rows(world));
const options = all.reduce(
  (sum, { pairs }) => sum + Object.keys(pairs).length,
  0,
);
const pairs = all.reduce((sum, rows) => sum + pairsOf(rows).length, 0);
console.log(
  `# Options and the pairs of runs that show what they do\n\n` +
    `${all.length} commands, ${options} options, ${pairs} pairs. W is a folder ` +
    `of small models and pictures (tests/cli/option_world.ts).\n`,
);
for (const rows of all) console.log(optionTableOf(rows));
