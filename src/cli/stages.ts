/**
 * What the stages of an experiment are called on the terminal.
 *
 * @module
 */

const LABELS: Readonly<Record<string, string>> = {
  imagine: "drawing concepts",
  train: "training concepts",
  fuse: "fusing",
  sample: "drawing",
  score: "scoring",
  time: "timing",
};

/**
 * What a stage is called.
 *
 * @param stage Its name in the records of an experiment.
 */
export function stageLabel(stage: string): string {
  return LABELS[stage] ?? stage;
}
