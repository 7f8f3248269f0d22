/**
 * A test of an evaluator of identity: does it notice when a subject's parts are
 * scrambled, when its shape is gone, or when it is somebody else?
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, type Key } from "../core/random.ts";
import type { Pixels } from "../io/png.ts";
import type { ClipVector } from "./clip.ts";
import { cosine, imageAlignment } from "./clip_score.ts";
import {
  corrupt,
  type Corruption,
  CORRUPTIONS,
  type Subject,
} from "./corruptions.ts";
import { mean } from "./statistics.ts";

/** Embeds pictures as unit vectors. */
export type Embed = (images: readonly Pixels[]) => Promise<ClipVector[]>;

/** Pictures of one identity. */
export interface TestedIdentity {
  /** Its name. */
  readonly name: string;
  /** Held-out pictures with the subject's mask, at least two. */
  readonly references: readonly Subject[];
  /** Other pictures of it, which references are told by; at least one. */
  readonly gallery: readonly Pixels[];
  /** What the untouched base model draws for its class word; may be empty. */
  readonly classWord: readonly Pixels[];
}

/** What an evaluator is tested on. */
export interface EvaluatorSet {
  /** At least two identities. */
  readonly identities: readonly TestedIdentity[];
  /** Others that look alike, only in the gallery. */
  readonly lookAlikes: readonly {
    readonly name: string;
    readonly gallery: readonly Pixels[];
  }[];
}

/** What came out of {@linkcode checkEvaluator}. */
export interface EvaluatorCheck {
  /** Image alignment of references with the others of their identity. */
  readonly same: number;
  /** The same of spoilt references. */
  readonly spoilt: Readonly<Record<Corruption, number>>;
  /** The largest mean alignment of another identity's references. */
  readonly nearest: number;
  /**
   * Alignment of the class word's pictures; where there are none, of all other
   * identities' references.
   */
  readonly classWord: number;
  /** Whether there were pictures of the class word. */
  readonly drawn: boolean;
  /** Share of the distance from `same` to `classWord` that a corruption loses. */
  readonly loses: Readonly<Record<Corruption, number>>;
  /** Share of references whose nearest picture of all is of their identity. */
  readonly nearestNeighbour: number;
  /** What references were mistaken for, most often first. */
  readonly mistakes: readonly {
    readonly name: string;
    readonly for: string;
    readonly count: number;
  }[];
  /** Which floors are missed, a sentence each; none if it passes. */
  readonly failures: readonly string[];
}

/** The least that an evaluator must do. */
export const EVALUATOR_FLOORS = {
  /** Share that shuffled tiles and blocks of 8 pixels lose. */
  loses: 0.6,
  /** Nearest-neighbour identity. */
  nearestNeighbour: 0.9,
} as const;

/**
 * Tests an evaluator on pictures whose identity is known.
 *
 * Alignment is that of the reports: the mean of max(cos, 0) to the identity's
 * references, the picture itself left out.
 *
 * @param embed The evaluator.
 * @param set Identities and look-alikes.
 * @param key Randomness of the shuffles.
 * @returns Alignments and which floors are missed.
 * @throws If there are fewer than two identities, or one has too few pictures.
 *
 * @example
 * ```ts
 * const check = await checkEvaluator((p) => embedImages(clip, p), set, key(1));
 * console.log(check.failures.join("\n") || "passes");
 * ```
 */
export async function checkEvaluator(
  embed: Embed,
  set: EvaluatorSet,
  key: Key,
): Promise<EvaluatorCheck> {
  const { identities } = set;
  const what = "test an evaluator";
  if (identities.length < 2) {
    throw cannot(what, "at least two identities", identities.length);
  }
  for (const { name, references, gallery } of identities) {
    if (references.length < 2 || gallery.length < 1) {
      throw cannot(
        what,
        `two references and a gallery of ${name}`,
        `${references.length} and ${gallery.length}`,
      );
    }
  }
  const embedded = new Map<string, ClipVector[]>();
  for (const { name, references } of identities) {
    embedded.set(name, await embed(references.map(({ image }) => image)));
  }
  const without = (rows: readonly ClipVector[], i: number) =>
    rows.filter((_, j) => j !== i);
  const same: number[] = [], nearest: number[] = [], others: number[] = [];
  const classWord: number[] = [];
  const spoilt = Object.fromEntries(
    CORRUPTIONS.map((how) => [how, [] as number[]]),
  ) as Record<Corruption, number[]>;
  for (const { name, references, classWord: drawn } of identities) {
    const own = embedded.get(name)!;
    same.push(mean(own.map((row, i) => imageAlignment(row, without(own, i)))));
    for (const how of CORRUPTIONS) {
      const rows = await embed(
        references.map((subject, i) =>
          corrupt(subject, how, fold(key, name, how, i))
        ),
      );
      spoilt[how].push(
        mean(rows.map((row, i) => imageAlignment(row, without(own, i)))),
      );
    }
    const foreign = identities.filter((other) => other.name !== name).map((
      other,
    ) =>
      mean(embedded.get(other.name)!.map((row) => imageAlignment(row, own)))
    );
    nearest.push(Math.max(...foreign));
    others.push(mean(foreign));
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
    nearest: mean(nearest),
    classWord: far,
    drawn,
    loses,
    ...told,
    failures: failures(loses, told.nearestNeighbour),
  };
}

/** Whose picture is nearest to each reference. */
async function neighbours(
  embed: Embed,
  { identities, lookAlikes }: EvaluatorSet,
  embedded: ReadonlyMap<string, readonly ClipVector[]>,
): Promise<Pick<EvaluatorCheck, "nearestNeighbour" | "mistakes">> {
  const gallery: [string, ClipVector][] = [];
  for (const { name, gallery: images } of [...identities, ...lookAlikes]) {
    for (const row of await embed(images)) gallery.push([name, row]);
  }
  const mistakes = new Map<string, number>();
  let right = 0, total = 0;
  for (const { name } of identities) {
    for (const row of embedded.get(name)!) {
      let best = -Infinity, label = "";
      for (const [other, entry] of gallery) {
        const score = cosine(row, entry);
        if (score > best) [best, label] = [score, other];
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
  nearestNeighbour: number,
): string[] {
  const { loses: least, nearestNeighbour: fewest } = EVALUATOR_FLOORS;
  const said: string[] = [];
  const names = [
    ["shuffled8", "with its 8 px tiles shuffled"],
    ["pixelated8", "pixelated in 8 px blocks"],
  ] as const;
  for (const [how, text] of names) {
    if (loses[how] >= least) continue;
    said.push(
      `A subject ${text} loses ${loses[how].toFixed(2)} of the distance to ` +
        `another subject of its class; at least ${least} is asked for.`,
    );
  }
  if (nearestNeighbour < fewest) {
    said.push(
      `The nearest picture is of the right identity in ` +
        `${
          nearestNeighbour.toFixed(2)
        } of the cases; at least ${fewest} is asked for.`,
    );
  }
  return said;
}
