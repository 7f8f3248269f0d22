/**
 * A test of an evaluator of identity: does it notice when a subject's parts are
 * scrambled, when its shape is gone, or when it shows another identity?
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, type Key } from "../core/random.ts";
import type { Pixels } from "../io/png.ts";
import { decimal } from "../report/format.ts";
import type { Table } from "../report/table.ts";
import type { ClipVector } from "./clip.ts";
import type { Evaluator } from "./evaluator.ts";
import { cosine, imageAlignment } from "./clip_score.ts";
import {
  corrupt,
  type Corruption,
  CORRUPTIONS,
  type MaskedPicture,
} from "./corruptions.ts";
import { mean } from "./statistics.ts";

/** Embeds pictures as unit vectors. */
export type Embed = Evaluator["embed"];

/** Pictures of one identity. */
export interface TestedIdentity {
  /** Its name. */
  readonly name: string;
  /** Held-out pictures with the subject's mask, at least two. */
  readonly references: readonly MaskedPicture[];
  /**
   * Other pictures of it, by which references are recognised. If empty, the
   * other references are used.
   */
  readonly gallery: readonly Pixels[];
  /** What the untouched base model draws for its class word; may be empty. */
  readonly classWord: readonly Pixels[];
}

/** The pictures that an evaluator is tested on. */
export interface EvaluatorSet {
  /** At least one; one alone needs look-alikes and pictures of its class word. */
  readonly identities: readonly TestedIdentity[];
  /** Look-alikes, used in the gallery only. */
  readonly lookAlikes: readonly {
    readonly name: string;
    readonly gallery: readonly Pixels[];
  }[];
}

/** The result of {@linkcode checkEvaluator}. */
export interface EvaluatorCheck {
  /** Image alignment of references with the others of their identity. */
  readonly same: number;
  /** The same of corrupted references. */
  readonly spoilt: Readonly<Record<Corruption, number>>;
  /**
   * The largest mean alignment of another identity's references; absent where
   * there is one identity only.
   */
  readonly nearest?: number;
  /**
   * Alignment of the class word's pictures or, if an identity has none, of all
   * other identities' references.
   */
  readonly classWord: number;
  /** Whether every identity has pictures of its class word. */
  readonly drawn: boolean;
  /** Share of the distance from `same` to `classWord` that a corruption loses. */
  readonly loses: Readonly<Record<Corruption, number>>;
  /**
   * Share of references whose nearest picture in the gallery is of the same
   * identity.
   */
  readonly nearestNeighbour: number;
  /** What references were mistaken for, most often first. */
  readonly mistakes: readonly {
    readonly name: string;
    readonly for: string;
    readonly count: number;
  }[];
  /** Thresholds that are missed, one sentence each; empty if it passes. */
  readonly failures: readonly string[];
}

/** The thresholds that an evaluator must reach. */
export const EVALUATOR_FLOORS = {
  /** Minimum of `loses` for shuffled tiles and blocks of 8 pixels. */
  loses: 0.6,
  /** Minimum of `nearestNeighbour`. */
  nearestNeighbour: 0.9,
} as const;

/** The other pictures of a list. */
function without<T>(list: readonly T[], i: number): T[] {
  return list.filter((_, j) => j !== i);
}

/** Refuses sets that cannot test an evaluator. */
function checkSet({ identities, lookAlikes }: EvaluatorSet): void {
  const what = "test an evaluator";
  if (identities.length === 0) throw cannot(what, "identities", "none");
  const names = [...identities, ...lookAlikes].map(({ name }) => name);
  if (new Set(names).size !== names.length) {
    throw cannot(what, "different names", names.join(", "));
  }
  for (const { name, references } of identities) {
    if (references.length >= 2) continue;
    throw cannot(what, `two references of ${name}`, references.length);
  }
  const words = identities.filter(({ classWord }) => classWord.length > 0);
  if (words.length > 0 && words.length < identities.length) {
    throw cannot(
      what,
      "pictures of the class word for all identities, or for none",
      `some for ${words.map(({ name }) => name).join(", ")}`,
    );
  }
  const empty = lookAlikes.find(({ gallery }) => gallery.length === 0);
  if (empty) throw cannot(what, `pictures of ${empty.name}`, "none");
  if (identities.length > 1) return;
  if (lookAlikes.length === 0 || identities[0].classWord.length === 0) {
    throw cannot(
      what,
      "two identities, or look-alikes and pictures of the class word",
      identities[0].name,
    );
  }
}

/** Corrupts a reference's subject; an error if nothing changes. */
function spoil(
  subject: MaskedPicture,
  how: Corruption,
  key: Key,
  which: string,
): Pixels {
  const image = corrupt(subject, how, key);
  // A grey subject has no hue; any other unchanged subject is too small.
  if (
    how !== "hue" && image.data.every((v, i) => v === subject.image.data[i])
  ) {
    throw cannot(
      `test an evaluator on ${which}`,
      `a subject that ${how} changes: larger, not of one colour`,
      "the same picture",
    );
  }
  return image;
}

/**
 * Tests an evaluator on pictures whose identity is known.
 *
 * Alignment is that of the reports: the mean of max(cos, 0) to the identity's
 * references, the picture itself left out.
 *
 * @param embed The evaluator.
 * @param set Identities and look-alikes.
 * @param key Randomness of the shuffles.
 * @returns Alignments and missed thresholds.
 * @throws If an identity has fewer than two references or nothing to be
 * distinguished from, two have one name, or a subject is too small to be
 * corrupted.
 *
 * @example
 * ```ts ignore
 * const check = await checkEvaluator((p) => embedImages(clip, p), set, key(1));
 * console.log(check.failures.join("\n") || "passes");
 * ```
 */
export async function checkEvaluator(
  embed: Embed,
  set: EvaluatorSet,
  key: Key,
): Promise<EvaluatorCheck> {
  checkSet(set);
  const { identities } = set;
  const embedded = new Map<string, ClipVector[]>();
  for (const { name, references } of identities) {
    embedded.set(name, await embed(references.map(({ image }) => image)));
  }
  const same: number[] = [], nearest: number[] = [], others: number[] = [];
  const classWord: number[] = [];
  const spoilt = Object.fromEntries(
    CORRUPTIONS.map((how) => [how, [] as number[]]),
  ) as Record<Corruption, number[]>;
  for (const { name, references, classWord: drawn } of identities) {
    const own = embedded.get(name)!;
    // The i-th row is of the i-th reference, or of its corrupted version.
    const alignment = (rows: readonly ClipVector[]) =>
      mean(rows.map((row, i) => imageAlignment(row, without(own, i))));
    same.push(alignment(own));
    for (const how of CORRUPTIONS) {
      const pictures = references.map((subject, i) =>
        spoil(subject, how, fold(key, name, how, i), `${name}, picture ${i}`)
      );
      spoilt[how].push(alignment(await embed(pictures)));
    }
    if (identities.length > 1) {
      const foreign = identities.filter((other) => other.name !== name)
        .map((other) =>
          mean(embedded.get(other.name)!.map((row) => imageAlignment(row, own)))
        );
      nearest.push(Math.max(...foreign));
      others.push(mean(foreign));
    }
    if (drawn.length > 0) {
      classWord.push(
        mean((await embed(drawn)).map((row) => imageAlignment(row, own))),
      );
    }
  }
  const drawn = classWord.length === identities.length;
  const far = mean(drawn ? classWord : others), near = mean(same);
  const averages = Object.fromEntries(
    CORRUPTIONS.map((how) => [how, mean(spoilt[how])]),
  ) as Record<Corruption, number>;
  const loses = Object.fromEntries(
    CORRUPTIONS.map((how) => [
      how,
      near > far ? (near - averages[how]) / (near - far) : 0,
    ]),
  ) as Record<Corruption, number>;
  const told = await neighbours(embed, set, embedded);
  return {
    same: near,
    spoilt: averages,
    ...(nearest.length > 0 ? { nearest: mean(nearest) } : {}),
    classWord: far,
    drawn,
    loses,
    ...told,
    failures: failures(loses, drawn, told.nearestNeighbour),
  };
}

/** The identity of the picture nearest to each reference. */
async function neighbours(
  embed: Embed,
  { identities, lookAlikes }: EvaluatorSet,
  embedded: ReadonlyMap<string, readonly ClipVector[]>,
): Promise<Pick<EvaluatorCheck, "nearestNeighbour" | "mistakes">> {
  const gallery: [string, ClipVector][] = [];
  for (const { name, gallery: images } of [...identities, ...lookAlikes]) {
    const rows = images.length > 0 ? await embed(images) : embedded.get(name)!;
    for (const row of rows) gallery.push([name, row]);
  }
  const mistakes = new Map<string, number>();
  let right = 0, total = 0;
  for (const { name } of identities) {
    for (const row of embedded.get(name)!) {
      let best = -Infinity, label = "";
      for (const [other, entry] of gallery) {
        // A reference in the gallery is not compared with itself.
        if (entry === row) continue;
        const score = cosine(row, entry);
        // Ties count against the identity: a constant embedding is no success.
        if (score > best || (score === best && other !== name)) {
          [best, label] = [score, other];
        }
      }
      total++;
      if (label === name) right++;
      else {
        const mistake = JSON.stringify([name, label]);
        mistakes.set(mistake, (mistakes.get(mistake) ?? 0) + 1);
      }
    }
  }
  return {
    nearestNeighbour: right / total,
    mistakes: [...mistakes].sort((a, b) => b[1] - a[1]).map(([pair, count]) => {
      const [name, other] = JSON.parse(pair) as [string, string];
      return { name, for: other, count };
    }),
  };
}

function failures(
  loses: EvaluatorCheck["loses"],
  drawn: boolean,
  nearestNeighbour: number,
): string[] {
  const { loses: least, nearestNeighbour: fewest } = EVALUATOR_FLOORS;
  const said: string[] = [];
  const names = [
    ["shuffled8", "shuffled in 8 px tiles"],
    ["pixelated8", "pixelated in 8 px blocks"],
  ] as const;
  const end = drawn ? "the class word's pictures" : "other identities";
  for (const [how, text] of names) {
    if (loses[how] >= least) continue;
    said.push(
      `A subject ${text} loses ${loses[how].toFixed(2)} of the distance to ` +
        `${end}, less than ${least.toFixed(2)}.`,
    );
  }
  if (!(nearestNeighbour >= fewest)) {
    said.push(
      `The nearest picture is of the same identity in a share of ` +
        `${nearestNeighbour.toFixed(2)}, less than ${fewest.toFixed(2)}.`,
    );
  }
  return said;
}

/** Names of the corruptions in tables. */
const CORRUPTION_NAMES: Readonly<Record<Corruption, string>> = {
  shuffled8: "8 px tiles shuffled",
  shuffled4: "4 px tiles shuffled",
  pixelated8: "pixelated, 8 px",
  pixelated4: "pixelated, 4 px",
  blob: "blurred to its colours",
  hue: "hue turned",
};

/**
 * The result in one line, the first of every report.
 *
 * @param name The evaluator.
 * @param check Its test.
 */
export function evaluatorVerdict(name: string, check: EvaluatorCheck): string {
  return check.failures.length === 0
    ? `The evaluator ${name} passes its test.`
    : `THE EVALUATOR ${name} FAILS ITS TEST: ${check.failures.join(" ")}`;
}

/**
 * Tests of evaluators as a table, an evaluator per column: alignments, and in
 * brackets the share of the distance from "same" to the class word that is lost.
 *
 * @param checks Evaluators by name.
 */
export function evaluatorTable(
  checks: Readonly<Record<string, EvaluatorCheck>>,
): Table {
  const all = Object.values(checks);
  const row = (name: string, cell: (check: EvaluatorCheck) => string) => [
    name,
    ...all.map(cell),
  ];
  const drawn = all.every((check) => check.drawn);
  return {
    head: ["image alignment", ...Object.keys(checks)],
    rows: [
      row("same", ({ same }) => decimal(same)),
      ...CORRUPTIONS.map((how) =>
        row(
          CORRUPTION_NAMES[how],
          ({ spoilt, loses }) =>
            `${decimal(spoilt[how])} (${decimal(loses[how], 2)})`,
        )
      ),
      row(
        "nearest other identity",
        ({ nearest }) => nearest === undefined ? "" : decimal(nearest),
      ),
      row(
        drawn ? "class word" : "other identities",
        ({ classWord }) => decimal(classWord),
      ),
      row(
        "nearest neighbour right, share",
        ({ nearestNeighbour }) => decimal(nearestNeighbour),
      ),
      row("test", ({ failures }) => failures.length > 0 ? "fails" : "passes"),
    ],
  };
}
