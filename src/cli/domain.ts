/**
 * `deno task experiment domain`: in-domain against out-domain concepts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import {
  DOMAIN_METHODS,
  type DomainPlan,
  domainReport,
  fig3,
} from "../experiments/fig3.ts";
import { conceptSheet } from "../experiments/pictures.ts";
import type { Command } from "./command.ts";
import { experiment, type ExperimentRequest } from "./experiment_command.ts";
import {
  LAB_OPTIONS,
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
export interface DomainRequest extends ExperimentRequest {
  /** What is run. */
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

/** In-domain against out-domain concepts. */
export const domain: Command<DomainRequest> = experiment({
  name: "domain",
  summary: "Concepts that the base model can draw, and ones that it cannot",
  about: `Figure 3 of the paper: concepts that the base model can draw itself
(in-domain; it draws their pictures first) and identities, which it cannot. What
does the embedding alone hold, and what do the weights add?`,
  options: OPTIONS,
  request: (given): DomainRequest => {
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
        conclusive: !quick,
        settings: settingsOf(values),
      },
    };
  },
  async run(lab, { plan }) {
    const { report, pictures } = await fig3(lab, plan);
    return {
      report: domainReport(report, await conceptSheet(lab, pictures)),
      data: { ...report, settings: plan.settings },
    };
  },
});
