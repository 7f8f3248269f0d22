/**
 * `deno task experiment domain`: in-domain against out-domain concepts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
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
import { type Command, command } from "./command.ts";
import {
  inLab,
  LAB_OPTIONS,
  type LabRequest,
  labRequest,
  RUN_OPTIONS,
  SETTING_OPTIONS,
  settingsOf,
} from "./lab_options.ts";
import {
  flag,
  folder,
  listOf,
  number,
  oneOf,
  optionName,
  optionTable,
  text,
  type Values,
} from "./options.ts";
import { contactSheet } from "../report/grid.ts";
import { markdownTable, textTable } from "../report/markdown.ts";

const OPTIONS = optionTable({
  quick: {
    type: flag,
    help: "2 concepts of each domain, 4 prompts: mechanics only",
  },
  concepts: {
    type: listOf(text),
    otherwise: "niko,finn,ulla,zara",
    help: "in-domain concepts",
  },
  outDomain: {
    type: listOf(text),
    otherwise: "the twins of those",
    help: "identities",
  },
  ...RUN_OPTIONS,
  method: {
    type: listOf(oneOf(DOMAIN_METHODS)),
    otherwise: "all",
    help: DOMAIN_METHODS.join(", "),
  },
  alphas: {
    type: listOf(number()),
    otherwise: "0,0.7,1",
    help: "strengths of adapters",
  },
  lrEmbedding: {
    type: number({ least: 0 }),
    otherwise: "5e-3",
    help: "rate of methods that have embeddings only",
  },
  lrBeside: {
    type: number({ least: 0 }),
    otherwise: "the preset's",
    help: "rate of the embedding beside an adapter",
  },
  noFusion: { type: flag, help: "leave out the fused models" },
  ...SETTING_OPTIONS,
  ...LAB_OPTIONS,
  out: { type: folder, otherwise: "out/domain", help: "where results go" },
});

/** What the command line asks for. */
export interface DomainRequest {
  readonly lab: LabRequest;
  readonly plan: DomainPlan;
}

type DomainValues = Values<typeof OPTIONS>;

/** Refuses what the chosen methods have no use for. */
function checked(values: DomainValues): DomainValues {
  const methods = values.method ?? DOMAIN_METHODS;
  const adapters = methods.filter((one) => one === "lora" || one === "ed-lora");
  const refuse = (field: keyof DomainValues, expected: string) => {
    if (values[field] === undefined || values[field] === false) return;
    throw cannot(
      "compare domains",
      `${expected} in --method with ${optionName(field)}`,
      methods.join(", "),
    );
  };
  if (adapters.length === methods.length) {
    refuse("lrEmbedding", "textual-inversion or p+");
  }
  if (adapters.length === 0) {
    for (const field of ["lrBeside", "alphas", "noFusion"] as const) {
      refuse(field, "lora or ed-lora");
    }
  }
  return values;
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
export const domain: Command<DomainRequest> = command({
  name: "domain",
  summary: "Concepts that the base model can draw, and ones that it cannot",
  usage: "deno task experiment domain [options]",
  about: `Figure 3 of the paper: concepts that the base model can draw itself
(in-domain; it draws their pictures first) and identities, which it cannot. What
does the embedding alone hold, and what do the weights add?`,
  options: OPTIONS,
  request: (given) => {
    const { quick, out, ...values } = checked(given);
    return {
      lab: labRequest(
        values,
        out ?? (quick ? "out/domain-quick" : "out/domain"),
      ),
      plan: {
        inDomain: values.concepts ?? (quick ? ["ulla", "finn"] : undefined),
        outDomain: values.outDomain,
        prompts: values.n ?? (quick ? 4 : 20),
        seeds: values.seeds ?? [0],
        methods: values.method,
        alphas: values.alphas,
        embeddingRate: values.lrEmbedding,
        adapterEmbeddingRate: values.lrBeside,
        fuse: !values.noFusion,
        settings: settingsOf(values),
      },
    };
  },
  async run({ lab: request, plan }) {
    const { out } = request;
    await inLab(
      "run the domain experiment",
      request,
      async (lab, { describe, progress }) => {
        progress.line(describe);
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
      },
    );
  },
});
