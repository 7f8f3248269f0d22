/**
 * Does a concept generalise from its pictures or does it memorise them? The
 * denoising error on pictures that were trained on and on pictures that were
 * not, against layers, learning rate, steps and number of pictures.
 *
 * @module
 */
import { listOf, number, oneOf, optionTable, whole } from "../core/options.ts";
import { TARGET_NAMES } from "../customize/lora.ts";
import { finite, rounded } from "../evaluation/compare.ts";
import { mean, tInterval } from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import type { PictureSet } from "../lab/specs.ts";
import { TRAIN_IMAGES } from "../micro/concepts.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import {
  type OverfitArm,
  overfitLabel,
  overfitReport,
  type OverfitRow,
} from "./overfit_table.ts";
import { conceptPictures } from "./pictures.ts";
import { RUN_OPTIONS } from "./presets.ts";
import { armCells, type Cell, drawCells } from "./scores.ts";
import {
  DEVELOPMENT_CONCEPTS,
  firstPictures,
  IDENTITY,
  type Subject,
  subjects,
  training,
} from "./subjects.ts";

const OPTIONS = optionTable({
  concepts: {
    type: listOf(IDENTITY),
    default: DEVELOPMENT_CONCEPTS,
    help: "names of identities",
  },
  embeddings: {
    ...RUN_OPTIONS.embeddings,
    default: ["edlora"],
    otherwise: "ed-lora",
  },
  layers: {
    type: listOf(oneOf(TARGET_NAMES)),
    default: ["attention", "linear", "all"],
    help: `layers with an adapter: ${TARGET_NAMES.join(", ")}`,
  },
  rates: {
    name: "lr-unet",
    type: listOf(number({ least: 0 })),
    otherwise: "the preset's",
    help: "learning rates of the UNet's adapter",
  },
  lengths: {
    name: "train-steps",
    type: listOf(whole({ least: 1 })),
    otherwise: "the preset's",
    help: "training steps per concept",
  },
  pictures: {
    type: listOf(whole({ least: 1, most: TRAIN_IMAGES })),
    otherwise: "all",
    help: "numbers of training pictures per concept, from the first on",
  },
  seeds: RUN_OPTIONS.seeds,
});

/** The plan: every combination of its lists is run. */
export type OverfitPlan = Plan<typeof OPTIONS>;

type Trained = NonNullable<OverfitArm>;

function armsOf(plan: OverfitPlan): Trained[] {
  const { settings: { train }, embeddings, layers } = plan;
  const rates = plan.rates ?? [train.lr!.unet];
  const lengths = plan.lengths ?? [train.steps!];
  const counts = plan.pictures ?? [null];
  return embeddings.flatMap((embedding) =>
    layers.flatMap((targets) =>
      rates.flatMap((rate) =>
        lengths.flatMap((steps) =>
          counts.map((pictures) => (
            { embedding, layers: targets, rate, steps, pictures }
          ))
        )
      )
    )
  );
}

/** A cell with the pictures that it was trained on. */
interface Measured extends Cell<OverfitArm> {
  readonly pictures: PictureSet;
}

/** Training error against held-out error. */
export const overfit = experiment({
  name: "overfit",
  summary:
    "Training error against held-out error, by layers, rate, steps and " +
    "pictures (development concepts)",
  about: `Does a concept generalise or does it memorise its pictures? Every
combination of layers, learning rates, steps and numbers of pictures is trained;
the masked denoising error is measured on training pictures and on held-out ones.`,
  options: OPTIONS,
  without: ["trainSteps", "layers"],
  scales: {
    quick: {
      help: "1 concept, 20 training steps: smoke test",
      plan: { concepts: DEVELOPMENT_CONCEPTS.slice(0, 1), lengths: [20] },
    },
  },
  run: measure,
});

/** Trains every combination and measures both errors; the class word is first. */
async function measure(
  lab: Lab,
  plan: OverfitPlan,
): Promise<Outcome<{ readonly rows: readonly OverfitRow[] }>> {
  const { settings, seeds } = plan;
  const { sampling } = settings;
  const all = await subjects(lab, plan.concepts, 1, sampling);
  const arms = armsOf(plan);
  const cells: Measured[] = seeds.flatMap((seed) =>
    armCells(null, seed, all)
      .map((cell) => ({ ...cell, pictures: cell.subject.train }))
  );
  for (const seed of seeds) {
    const asks = arms.flatMap((arm) =>
      all.map((subject) => {
        const { rate: unet, steps, pictures } = arm;
        const change = { lr: { ...settings.train.lr!, unet }, steps };
        return {
          ...training(settings, subject, arm.embedding, seed, change),
          layers: arm.layers,
          pictures: firstPictures(subject.train, pictures ?? undefined),
        };
      })
    );
    const trained = await lab.train(asks);
    trained.forEach(({ model, phrase: words }, i) => {
      const arm = arms[Math.floor(i / all.length)];
      const subject = all[i % all.length];
      const { pictures } = asks[i];
      cells.push({ arm, seed, subject, model, words, pictures });
    });
  }
  const errors = async (set: (cell: Measured) => PictureSet, name: string) => {
    const found = await lab.heldout(cells.map((cell) => ({
      model: cell.model,
      pictures: set(cell),
      phrase: cell.words,
      noise: [cell.seed, name, cell.subject.name],
    })));
    return found.map(({ mean }) => mean);
  };
  const train = await errors(({ pictures }) => pictures, "train");
  const heldout = await errors(
    ({ subject }) =>
      firstPictures(subject.references, settings.heldoutPictures),
    "heldout",
  );
  const drawn = await drawCells<OverfitArm>(lab, sampling, cells);
  const rowOf = (arm: OverfitArm): OverfitRow => {
    const of = (values: readonly number[], { name }: Subject, which = arm) =>
      mean(
        values.filter((_, i) =>
          cells[i].arm === which && cells[i].subject.name === name
        ),
      );
    const gain = (values: readonly number[]) =>
      finite(tInterval(
        all.map((one) => 1 - of(values, one) / of(values, one, null)),
      ));
    return {
      arm,
      train: rounded(mean(all.map((one) => of(train, one)))),
      heldout: rounded(mean(all.map((one) => of(heldout, one)))),
      trainGain: gain(train),
      gain: gain(heldout),
      concepts: Object.fromEntries(
        all.map((one) => [one.name, {
          train: rounded(of(train, one)),
          heldout: rounded(of(heldout, one)),
        }]),
      ),
    };
  };
  const rows = [null, ...arms].map(rowOf);
  const sheet = await conceptPictures(lab, "overfit", drawn, overfitLabel, 1);
  return { data: { rows }, report: overfitReport(rows, sheet) };
}
