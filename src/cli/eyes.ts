/**
 * `deno task experiment eyes`: a finished ablation seen by other eyes.
 *
 * @module
 */
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { finish } from "../core/finish.ts";
import { loadClipEvaluator } from "../evaluation/evaluator.ts";
import { loadMobileNet } from "../evaluation/outside_evaluator.ts";
import { comparisonTable } from "../experiments/ablation_figures.ts";
import { ablationSchema } from "../experiments/ablation_schema.ts";
import { type EyeReport, lookAgain, optionsOf } from "../experiments/eyes.ts";
import { joinPath, readJson, writeJson } from "../io/files.ts";
import { backendOf, type Command, EXIT_CODES, readOptions } from "./command.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import { createProgress } from "./progress.ts";
import { decimal, textTable } from "../report/markdown.ts";

const HELP = `deno task experiment eyes [options]

Image alignment of a finished ablation's pictures by nsfwjs' MobileNetV2 (npm,
25 MB, downloaded when this is run) and by other CLIPs.

  --out FOLDER    the ablation's (default out/ablation); eyes.json goes there
  --clips LIST    folders of CLIPs that look, too
  --cache FOLDER  finished pieces (default: cache in the output folder)
  --model FOLDER  base model (default: the embedded one)
  --clip FOLDER   the ablation's evaluation CLIP (default: the embedded one)
  --backend NAME  auto, webgpu, wasm or cpu

${EXIT_CODES}
`;

/** What the command line asks for. */
export interface EyesRequest {
  readonly out: string;
  readonly clips: readonly string[];
  readonly cache: string;
  readonly model: string;
  readonly clip: string;
  readonly backend: BackendChoice;
}

const WHAT = "look at an ablation again";

function parse(args: readonly string[]): EyesRequest | undefined {
  const options = readOptions(WHAT, args, {
    text: ["out", "clips", "cache", "model", "clip", "backend"],
  });
  if (options.help) return undefined;
  const out = options.text("out") ?? "out/ablation";
  const model = options.text("model") ?? EMBEDDED;
  return {
    out,
    clips: options.list("clips") ?? [],
    cache: options.text("cache") ?? joinPath(out, "cache"),
    model,
    clip: options.text("clip") ?? joinPath(model, "clip_b"),
    backend: backendOf(options),
  };
}

/** A finished ablation seen by other eyes. */
export const eyes: Command<EyesRequest> = {
  name: "eyes",
  summary: "A finished ablation seen by MobileNetV2 and by other CLIPs",
  help: HELP,
  parse,
  async run({ out, clips, cache, model, clip, backend }) {
    await mustExist(WHAT, model, clip, ...clips);
    const report = await readJson(
      joinPath(out, "ablation.json"),
      ablationSchema,
    );
    const options = optionsOf(report, { model, clip, cache });
    const progress = createProgress();
    progress.line((await selectBackend(backend)).describe);
    const seen: EyeReport[] = [];
    for (
      const open of [
        loadMobileNet,
        ...clips.map((f) => () => loadClipEvaluator(f)),
      ]
    ) {
      using eye = await open();
      seen.push(
        await finish(
          lookAgain(options, eye),
          ({ stage, done, total, unit }) =>
            progress.update(stage, done, total, unit),
        ),
      );
    }
    progress.finish();
    await writeJson(joinPath(out, "eyes.json"), seen);
    for (const { eye, image, ceiling, comparisons: found } of seen) {
      const comparisons = [...found];
      console.log(`\n${eye}`);
      console.log(textTable({
        head: ["arm", "image"],
        rows: [
          ...Object.entries(image).map(([arm, value]) => [arm, decimal(value)]),
          ["references themselves", decimal(ceiling)],
        ],
      }));
      for (const paper of [true, false]) {
        const { rows, head } = comparisonTable({ comparisons }, paper);
        console.log(paper ? "The paper's claims" : "Beyond the paper");
        console.log(textTable({ head, rows }));
      }
    }
    console.log(joinPath(out, "eyes.json"));
  },
};
