/**
 * `deno task experiment domain`: in-domain against out-domain concepts.
 *
 * @module
 */
import { finish } from "../core/finish.ts";
import { selectBackend } from "../core/backend.ts";
import {
  DOMAIN_METHODS,
  type DomainOptions,
  domainPictures,
  domains,
  domainTable,
  shareTable,
} from "../experiments/domain.ts";
import { store } from "../experiments/pieces.ts";
import { pixelsOf } from "../experiments/workshop.ts";
import {
  assertWritable,
  joinPath,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { decodePng, encodePng, type Pixels } from "../io/png.ts";
import { conceptImage, loadConceptArt } from "../micro/concepts.ts";
import {
  backendOf,
  type Command,
  EXIT_CODES,
  readOptions,
  runCommand,
} from "./command.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import { stageLabel } from "./stages.ts";
import { settingsOf, workersFor } from "./study_options.ts";
import { createProgress } from "./progress.ts";
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
  --preset NAME        ablation or official
  --train-steps N      training steps of a concept
  --rank N             rank of the adapters
  --steps N            sampling steps
  --guidance X         guidance scale
  --cache FOLDER       finished pieces
  --model FOLDER       base model (default: the embedded one)
  --clip FOLDER        evaluation CLIP (default: the embedded one)
  --backend NAME       auto, webgpu, wasm or cpu
  --workers N          workers (default: processors; 0: in place)
  --out FOLDER         where results go (default out/domain)

${EXIT_CODES}
`;

/** What the command line asks for. */
export interface DomainRequest {
  readonly out: string;
  readonly workers?: number;
  readonly backend: ReturnType<typeof backendOf>;
  readonly options: Omit<DomainOptions, "workers" | "backend">;
}

const WHAT = "run the domain experiment";

function parse(args: readonly string[]): DomainRequest | undefined {
  const options = readOptions(WHAT, args, {
    text: [
      "concepts",
      "out-domain",
      "n",
      "seeds",
      "method",
      "alphas",
      "lr-embedding",
      "lr-beside",
      "preset",
      "train-steps",
      "rank",
      "steps",
      "guidance",
      "cache",
      "model",
      "clip",
      "backend",
      "workers",
      "out",
    ],
    flags: ["quick", "no-fusion"],
  });
  if (options.help) return undefined;
  const quick = options.flag("quick");
  const count = (name: string, fallback: number, most = Infinity) =>
    options.number(name, { whole: true, least: 1, most }) ?? fallback;
  const model = options.text("model") ?? EMBEDDED;
  const out = options.text("out") ??
    (quick ? "out/domain-quick" : "out/domain");
  const workers = options.number("workers", { whole: true, least: 0 });
  const inDomain = options.list("concepts") ??
    (quick ? ["ulla", "finn"] : undefined);
  const outDomain = options.list("out-domain");
  const methods = options.someOf("method", DOMAIN_METHODS);
  const alphas = options.numbers("alphas");
  const embeddingRate = options.number("lr-embedding", { least: 0 });
  const adapterEmbeddingRate = options.number("lr-beside", { least: 0 });
  return {
    out,
    ...(workers === undefined ? {} : { workers }),
    backend: backendOf(options),
    options: {
      model,
      clip: options.text("clip") ?? joinPath(model, "clip_b"),
      cache: options.text("cache") ?? joinPath(out, "cache"),
      ...(inDomain ? { inDomain } : {}),
      ...(outDomain ? { outDomain } : {}),
      prompts: count("n", quick ? 4 : 20, 20),
      seeds: options.numbers("seeds", { whole: true }) ?? [0],
      ...(methods ? { methods } : {}),
      ...(alphas ? { alphas } : {}),
      ...(embeddingRate === undefined ? {} : { embeddingRate }),
      ...(adapterEmbeddingRate === undefined ? {} : { adapterEmbeddingRate }),
      fuse: !options.flag("no-fusion"),
      settings: settingsOf(options),
    },
  };
}

/** The grid: a concept a row, an arm a column. */
async function sheetOf(options: DomainOptions): Promise<Pixels> {
  const { cache } = options;
  const art = await loadConceptArt();
  const stored = async (id: string) =>
    decodePng(await Deno.readFile(store.image(cache, id)));
  const pictures = await domainPictures(options);
  const columns = [
    ...new Set(pictures.flatMap((row) => [...row.pictures.keys()])),
  ];
  const rows: (Pixels | undefined)[][] = [];
  for (const { concept, reference, pictures: own } of pictures) {
    const row: (Pixels | undefined)[] = [];
    if (reference === undefined) {
      const { image, scene } = conceptImage(concept, "reference", 0, art);
      row.push(pixelsOf(image, scene.side));
    } else row.push(await stored(reference));
    for (const label of columns) {
      const id = own.get(label);
      row.push(id === undefined ? undefined : await stored(id));
    }
    rows.push(row);
  }
  return contactSheet(rows, {
    // The sheet's letters are ASCII.
    columnLabels: ["reference", ...columns].map((label) =>
      label.replaceAll("α", "a")
    ),
    rowLabels: pictures.map(({ domain, concept }) => `${domain}: ${concept}`),
  });
}

/** In-domain against out-domain concepts. */
export const domain: Command<DomainRequest> = {
  name: "domain",
  summary: "Concepts that the base model can draw, and ones that it cannot",
  help: HELP,
  parse,
  async run({ out, ...request }) {
    await mustExist(WHAT, request.options.model, request.options.clip);
    await assertWritable(out);
    const backend = await selectBackend(request.backend);
    const options: DomainOptions = {
      ...request.options,
      workers: workersFor(request.workers, backend.name),
      backend: backend.name,
    };
    const progress = createProgress();
    progress.line(backend.describe);
    const report = await finish(
      domains(options),
      ({ stage, done, total, unit }) =>
        progress.update(stageLabel(stage), done, total, unit),
    );
    progress.finish();
    const { settings } = options;
    await writeJson(joinPath(out, "domain.json"), { ...report, settings });
    await writeAtomic(
      joinPath(out, "domain.md"),
      [
        "# In-domain and out-domain concepts",
        "",
        markdownTable(domainTable(report)),
        "How much of what a concept gains over the class word its embedding " +
        "alone has (95 % bootstrap over concepts):",
        "",
        markdownTable(shareTable(report)),
      ].join("\n"),
    );
    const sheet = await sheetOf(options);
    await writeAtomic(joinPath(out, "domain.png"), encodePng(sheet));
    console.log(`\n${textTable(domainTable(report))}`);
    console.log(textTable(shareTable(report)));
    console.log(`${joinPath(out, "domain.md")}  (also domain.json, .png)`);
  },
};

if (import.meta.main) Deno.exit(await runCommand(domain, Deno.args));
