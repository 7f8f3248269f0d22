/**
 * `deno task evaluate --heldout`: the denoising error of a concept on photos
 * that it was not trained on.
 *
 * @module
 */
import type { BackendChoice } from "../core/backend.ts";
import { fillCaption, PLACEHOLDERS } from "../customize/captions.ts";
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import {
  attachConcept,
  disposeConcept,
  releaseTokens,
} from "../customize/concept.ts";
import { encodeData, readExamples } from "../customize/dataset.ts";
import { checkBackground, firstFrames, unreadFiles } from "./options.ts";
import { modelSize } from "../diffusion/layout.ts";
import {
  HELDOUT_TIMESTEPS,
  type HeldOutError,
  heldOutError,
  keptShare,
} from "../evaluation/heldout.ts";
import { assertWritableFile, writeJson } from "../io/files.ts";
import { disposeModel, type Model } from "../models/model.ts";
import type { Colour } from "../io/resize.ts";
import { decimal } from "../report/format.ts";
import { textTable } from "../report/table.ts";
import { type ConceptRequest, openConcept, unusedFields } from "./concepts.ts";
import {
  type ModelRequest,
  mustExist,
  openModel,
  startBackend,
} from "./models.ts";
import { createProgress, terminalColumns } from "./progress.ts";

/** What `--heldout` is asked. */
export interface HeldOutRequest extends ModelRequest {
  /** Held-out photos, captions and masks, as `train` reads them. */
  readonly heldout: string;
  /** Folder of masks, where it is not `masks` inside. */
  readonly masks?: string;
  /** The single concept. */
  readonly concept?: ConceptRequest;
  /** A fused model that knows the concept. */
  readonly fused?: string;
  /** The concept's words, where no concept says them. */
  readonly phrase?: string;
  /** The class word, where no concept says it. */
  readonly class?: string;
  /** What transparent pixels show. */
  readonly background?: Colour;
  /** Seed of the noise. */
  readonly seed?: number;
  /** Where JSON goes, too. */
  readonly out?: string;
  /** Prints JSON only. */
  readonly json: boolean;
  /** Where it is computed. */
  readonly backend: BackendChoice;
}

/** One model's error. */
export interface HeldOutArm extends HeldOutError {
  /** Words in the concept's place. */
  readonly words: string;
  /** Kept share of the single concept's gain, where there is one. */
  readonly kept?: number;
}

/** What `--json` prints. */
export interface HeldOutReport {
  /** Photos. */
  readonly pictures: number;
  /** Timesteps of `byTimestep`. */
  readonly timesteps: readonly number[];
  /** Arms by name: class word, single, fused. */
  readonly arms: Readonly<Record<string, HeldOutArm>>;
  /** (class word − single) / class word, where there is a single concept. */
  readonly gain?: number;
}

/**
 * Measures held-out errors: of the base model with the class word, of the base
 * with the concept, and of a fused model with the concept's words.
 *
 * @param request What is asked for.
 * @returns Errors by arm.
 * @throws If photos, captions, masks or models are not as they should be, or
 * neither concept nor class word and words are known.
 */
export async function measureHeldOut(
  request: HeldOutRequest,
): Promise<HeldOutReport> {
  const what = `measure the held-out error on ${request.heldout}`;
  const base = await openModel(request);
  try {
    const concept = request.concept && await openConcept(request.concept, base);
    try {
      const classWord = request.class ?? concept?.classWord;
      const words = request.phrase ?? concept?.phrase;
      if (!classWord) throw cannot(what, "--class WORD", "none");
      if (!words) throw cannot(what, "--phrase TEXT", "none");
      const examples = await readExamples(request.heldout, {
        size: modelSize(base).width,
        masks: request.masks,
        background: request.background,
        captions: ["a photo of a {}"],
        onUnread: (names) => console.error(unreadFiles(request.heldout, names)),
      });
      checkBackground(request.background, examples);
      for (const line of firstFrames(examples)) console.error(line);
      const without = examples.findIndex(({ captions }) =>
        !PLACEHOLDERS.some((place) => captions[0].includes(place))
      );
      if (without >= 0) {
        throw cannot(
          what,
          `captions with ${PLACEHOLDERS.join(" or ")} in the concept's place`,
          examples[without].captions[0],
        );
      }
      const data = await encodeData(base, examples);
      const noise = fold(key(request.seed ?? 0), "evaluate");
      const progress = createProgress();
      const measure = (name: string, model: Model, place: string) =>
        heldOutError(
          model,
          data,
          data.captions.map(([caption]) => fillCaption(caption, place)),
          {
            key: noise,
            onProgress: (done, total) =>
              progress.update(name, done, total, "prediction"),
          },
        );
      const arms: Record<string, HeldOutArm> = {
        "class word": {
          words: classWord,
          ...await measure("class word", base, classWord),
        },
      };
      if (concept) {
        const { alpha } = request.concept!;
        const model = attachConcept(base, concept, { alpha });
        try {
          arms.single = { words, ...await measure("single", model, words) };
        } finally {
          releaseTokens(model, base);
        }
      }
      if (request.fused !== undefined) {
        const model = await openModel({ model: request.fused });
        try {
          arms.fused = { words, ...await measure("fused", model, words) };
        } finally {
          disposeModel(model);
        }
      }
      progress.finish();
      const far = arms["class word"].mean, near = arms.single?.mean;
      const kept = (arm: HeldOutArm): HeldOutArm =>
        near === undefined
          ? arm
          : { ...arm, kept: keptShare(arm.mean, far, near) };
      return {
        pictures: data.count,
        timesteps: HELDOUT_TIMESTEPS,
        arms: Object.fromEntries(
          Object.entries(arms).map(([name, arm]) => [name, kept(arm)]),
        ),
        ...(near === undefined ? {} : { gain: (far - near) / far }),
      };
    } finally {
      if (concept) disposeConcept(concept);
    }
  } finally {
    disposeModel(base);
  }
}

/** The report as a table, an arm per row. */
function written({ arms, timesteps, pictures, gain }: HeldOutReport): string {
  const single = "single" in arms;
  const table = textTable({
    head: [
      "",
      "error",
      ...(single ? ["kept"] : []),
      ...timesteps.map((t) => `t=${t}`),
      "words",
    ],
    rows: Object.entries(arms).map(([name, arm]) => [
      name,
      decimal(arm.mean),
      ...(single ? [decimal(arm.kept!, 2)] : []),
      ...arm.byTimestep.map((error) => decimal(error)),
      arm.words,
    ]),
  }, terminalColumns());
  return `Masked denoising error on ${pictures} held-out pictures; lower is better\n` +
    table +
    (gain === undefined
      ? ""
      : `\ngain ${decimal(gain, 2)} of the class word's error`);
}

/**
 * Measures and says what came out.
 *
 * @param request What is asked for.
 * @throws Before work starts, if files are missing, the output cannot be
 * written or the backend is not available.
 */
export async function runHeldOut(request: HeldOutRequest): Promise<void> {
  const { heldout, masks, concept, fused, out } = request;
  await mustExist(
    "evaluate",
    heldout,
    masks,
    concept?.path,
    fused,
  );
  if (out) await assertWritableFile(out);
  await startBackend(request.backend);
  const said = [
    "name",
    ...request.phrase === undefined ? [] : ["trigger" as const],
    ...request.class === undefined ? [] : ["class" as const],
  ] as const;
  const why = "--phrase and --class give the words that are measured";
  const idle = concept ? unusedFields(concept, said, why) : [];
  for (const line of idle) console.error(line);
  const report = await measureHeldOut(request);
  if (out) await writeJson(out, JSON.parse(JSON.stringify(report)));
  console.log(
    request.json ? JSON.stringify(report, null, 2) : written(report),
  );
  if (out && !request.json) console.log(out);
}
