/**
 * `deno task experiment domain`: in-domain against out-domain concepts.
 *
 * @module
 */
import {
  DOMAIN_METHODS,
  type DomainPictures,
  type DomainPlan,
  fig3,
} from "../experiments/fig3.ts";
import { domainTable, shareTable } from "../experiments/fig3_table.ts";
import { referencePictures } from "../experiments/subjects.ts";
import { joinPath, writeAtomic, writeJson } from "../io/files.ts";
import { encodePng, type Pixels } from "../io/png.ts";
import type { Lab } from "../lab/lab.ts";
import { type Command, EXIT_CODES, readOptions } from "./command.ts";
import {
  inLab,
  LAB_HELP,
  LAB_OPTIONS,
  type LabRequest,
  labRequest,
  SETTING_HELP,
  SETTING_OPTIONS,
  settingsOf,
} from "./lab_options.ts";
import { contactSheet } from "../report/grid.ts";
import { markdownTable, textTable } from "../report/markdown.ts";

const HELP = `deno task experiment domain [options]

Figure 3 of the paper: concepts that the base model can draw itself (in-domain;
it draws their pictures first) and the identities, which it cannot. What does
the embedding alone hold, and what do the weights add?

  --quick              2 concepts of each domain, 4 prompts: mechanics only
  --concepts LIST      in-domain concepts (default: niko, finn, ulla, zara)
  --out-domain LIST    identities (default: the twins of those)
  --n N                prompts of each concept (20)
  --seeds LIST         training seeds (0)
  --method LIST        ${DOMAIN_METHODS.join(", ")}
  --alphas LIST        strengths of adapters (0,0.7,1)
  --lr-embedding X     rate of methods that have embeddings only (5e-3)
  --lr-beside X        rate of the embedding beside an adapter (the preset's)
  --no-fusion          leave out the fused models
${SETTING_HELP}
${LAB_HELP}
  --out FOLDER        where results go (default out/domain)

${EXIT_CODES}
`;

/** What the command line asks for. */
export interface DomainRequest {
  readonly lab: LabRequest;
  readonly plan: DomainPlan;
}

const WHAT = "run the domain experiment";

function parse(args: readonly string[]): DomainRequest | undefined {
  const options = readOptions(WHAT, args, {
    text: [
      ...["concepts", "out-domain", "n", "seeds", "method", "alphas"],
      ...["lr-embedding", "lr-beside"],
      ...SETTING_OPTIONS,
      ...LAB_OPTIONS,
    ],
    flags: ["quick", "no-fusion"],
  });
  if (options.help) return undefined;
  const quick = options.flag("quick");
  return {
    lab: labRequest(options, quick ? "out/domain-quick" : "out/domain"),
    plan: {
      inDomain: options.list("concepts") ??
        (quick ? ["ulla", "finn"] : undefined),
      outDomain: options.list("out-domain"),
      prompts: options.number("n", { whole: true, least: 1, most: 20 }) ??
        (quick ? 4 : 20),
      seeds: options.numbers("seeds", { whole: true }) ?? [0],
      methods: options.someOf("method", DOMAIN_METHODS),
      alphas: options.numbers("alphas"),
      embeddingRate: options.number("lr-embedding", { least: 0 }),
      adapterEmbeddingRate: options.number("lr-beside", { least: 0 }),
      fuse: !options.flag("no-fusion"),
      settings: settingsOf(options),
    },
  };
}

/** The grid: a concept a row, an arm a column. */
async function sheetOf(
  lab: Lab,
  pictures: readonly DomainPictures[],
): Promise<Pixels> {
  const columns = [
    ...new Set(pictures.flatMap(({ images }) => [...images.keys()])),
  ];
  const rows = await Promise.all(pictures.map(async ({ subject, images }) => [
    ...await referencePictures(lab, subject, 1),
    ...await Promise.all(columns.map(async (label) => {
      const id = images.get(label);
      return id === undefined ? undefined : await lab.picture(id);
    })),
  ]));
  return contactSheet(rows, {
    // The sheet's letters are ASCII.
    columnLabels: ["reference", ...columns].map((label) =>
      label.replaceAll("α", "a")
    ),
    rowLabels: pictures.map(({ domain, subject }) =>
      `${domain}: ${subject.name}`
    ),
  });
}

/** In-domain against out-domain concepts. */
export const domain: Command<DomainRequest> = {
  name: "domain",
  summary: "Concepts that the base model can draw, and ones that it cannot",
  help: HELP,
  parse,
  async run({ lab: request, plan }) {
    const { out } = request;
    await inLab(WHAT, request, async (lab, { backend, progress }) => {
      progress.line(backend.describe);
      const { report, pictures } = await fig3(lab, plan);
      const { settings } = plan;
      await writeJson(joinPath(out, "domain.json"), { ...report, settings });
      await writeAtomic(
        joinPath(out, "domain.md"),
        [
          "# In-domain and out-domain concepts",
          "",
          markdownTable(domainTable(report)),
          "Share of a concept's gain over the class word that its embedding " +
          "alone has (95 % bootstrap over concepts):",
          "",
          markdownTable(shareTable(report)),
        ].join("\n"),
      );
      const sheet = await sheetOf(lab, pictures);
      await writeAtomic(joinPath(out, "domain.png"), encodePng(sheet));
      progress.finish();
      console.log(`\n${textTable(domainTable(report))}`);
      console.log(textTable(shareTable(report)));
      console.log(`${joinPath(out, "domain.md")}  (also domain.json, .png)`);
    });
  },
};
