/**
 * `deno task experiment frames`: how different the frames of the sets are.
 *
 * @module
 */
import { assertWritable, joinPath, writeJson } from "../io/files.ts";
import { loadConceptArt, loadFrameIndex } from "../micro/concepts.ts";
import { frameDistances, LEAST_FRAME_DISTANCE } from "../micro/frames.ts";
import { type Command, command } from "./command.ts";
import { folder, optionTable, type Values } from "./options.ts";
import { decimal } from "../report/format.ts";
import { textTable } from "../report/table.ts";

const OPTIONS = optionTable({
  out: {
    type: folder,
    default: joinPath("out", "frames"),
    help: "where frames.json goes",
  },
});

/** Least distances between training, reference and evaluation frames. */
export const frames: Command<Values<typeof OPTIONS>> = command({
  name: "frames",
  summary: "How different training, reference and evaluation frames are",
  usage: "deno task experiment frames [options]",
  about:
    `The smallest distance between an identity's training pictures, the references it
is scored by, and the pictures that the evaluation CLIP knows it from.`,
  options: OPTIONS,
  request: (values) => values,
  async run({ out }) {
    await assertWritable(out);
    const rows = frameDistances(await loadConceptArt(), await loadFrameIndex());
    await writeJson(joinPath(out, "frames.json"), rows);
    console.log(textTable({
      head: [
        "identity",
        "frames (training, reference, CLIP B)",
        "training – reference",
        "training – CLIP B",
        "reference – CLIP B",
      ],
      rows: rows.map((row) => [
        row.name,
        `${row.frames.train}, ${row.frames.reference}, ${row.frames.clip}`,
        decimal(row.trainReference, 1),
        decimal(row.trainClip, 1),
        decimal(row.referenceClip, 1),
      ]),
    }));
    const least = Math.min(
      ...rows.flatMap((row) => [
        row.trainReference,
        row.trainClip,
        row.referenceClip,
      ]),
    );
    console.log(
      `Smallest root mean square difference of two frames of different sets, ` +
        `mirror images included, 0–255: ${decimal(least, 1)} (at least ${
          decimal(LEAST_FRAME_DISTANCE, 0)
        } is asked for; writing a frame to a file changes it by about 2).`,
    );
    console.log(joinPath(out, "frames.json"));
  },
});
