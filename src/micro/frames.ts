/**
 * How different the frames of an identity's three sets are: were a reference
 * nearly a training frame, image alignment would measure memory; were either
 * nearly a frame of the evaluation CLIP, that CLIP would have seen the answer.
 *
 * @module
 */
import { type Art, scaledSprite, spriteKey } from "./art.ts";
import type { FrameIndex, FrameSet } from "./concepts.ts";

/** Smallest root mean square differences (0–255) between an identity's sets. */
export interface FrameDistances {
  /** Proper name. */
  readonly name: string;
  /** Frames of each set. */
  readonly frames: Readonly<Record<FrameSet, number>>;
  /** Between a training frame and a reference frame. */
  readonly trainReference: number;
  /** Between a training frame and one of the evaluation CLIP. */
  readonly trainClip: number;
  /** Between a reference frame and one of the evaluation CLIP. */
  readonly referenceClip: number;
  /** The smallest of the three, as it was recorded when the art was cut. */
  readonly recorded: number;
}

/** The smallest difference that is asked for: re-encoding makes about 2. */
export const LEAST_FRAME_DISTANCE = 9;

/** Side at which frames are compared. */
const SIDE = 48;

/** A frame over mid grey, as it is and mirrored. */
function views(art: Art, name: string, frame: string): Float32Array[] {
  const cell = scaledSprite(art, spriteKey(name, frame), SIDE);
  const plain = new Float32Array(SIDE * SIDE * 3), mirrored = plain.slice();
  for (let p = 0; p < SIDE * SIDE; p++) {
    const q = p - (p % SIDE) + SIDE - 1 - (p % SIDE);
    for (let c = 0; c < 3; c++) {
      const value = cell[p * 4 + c] + 128 * (1 - cell[p * 4 + 3]);
      plain[p * 3 + c] = mirrored[q * 3 + c] = value;
    }
  }
  return [plain, mirrored];
}

function difference(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return Math.sqrt(sum / a.length);
}

/**
 * Measures the distances between the sets of every identity, mirror images
 * included.
 *
 * @param art From `loadConceptArt`.
 * @param index From `loadFrameIndex`.
 */
export function frameDistances(art: Art, index: FrameIndex): FrameDistances[] {
  return index.identities.map(({ name, sets, distance }) => {
    const all = (set: FrameSet) =>
      sets[set].map((_, i) => views(art, name, `${set}-${i}`));
    const frames = {
      train: all("train"),
      reference: all("reference"),
      clip: all("clip"),
    };
    const nearest = (a: FrameSet, b: FrameSet): number => {
      let least = Infinity;
      for (const [one] of frames[a]) {
        for (const other of frames[b].flat()) {
          least = Math.min(least, difference(one, other));
        }
      }
      return least;
    };
    return {
      name,
      frames: {
        train: sets.train.length,
        reference: sets.reference.length,
        clip: sets.clip.length,
      },
      trainReference: nearest("train", "reference"),
      trainClip: nearest("train", "clip"),
      referenceClip: nearest("reference", "clip"),
      recorded: distance,
    };
  });
}
