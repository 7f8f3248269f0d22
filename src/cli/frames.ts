/**
 * `deno task experiment frames`: how different the frames of the sets are.
 *
 * @module
 */
import { assertWritable, joinPath } from "../io/files.ts";
import { loadConceptArt, loadFrameIndex } from "../micro/concepts.ts";
import { frameDistances, LEAST_FRAME_DISTANCE } from "../micro/frames.ts";
import { type Command, command } from "./command.ts";
import { folder, optionTable, type Values } from "./options.ts";
import { decimal } from "../report/format.ts";
import {
  type Report,
  reportText,
  tablePart,
  writeReport,
} from "../report/document.ts";
import { terminalColumns } from "./progress.ts";
import { tableOf } from "../report/table.ts";

const OPTIONS = optionTable({
  out: {
    type: folder,
    default: joinPath("out", "frames"),
    help: "folder for frames.json, .md and .html",
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
    const least = Math.min(
      ...rows.flatMap((row) => [
        row.trainReference,
        row.trainClip,
        row.referenceClip,
      ]),
    );
    const report: Report = {
      name: "frames",
      title: "how different training, reference and evaluation frames are",
      lead: [
        `Smallest root mean square difference of two frames of different sets, ` +
        `mirror images included, 0–255: ${decimal(least, 1)} (at least ${
          decimal(LEAST_FRAME_DISTANCE, 0)
        } is asked for; writing a frame to a file changes it by about 2).`,
      ],
      parts: [tablePart(
        tableOf(rows, [
          ["identity", ({ name }) => name],
          [
            "frames (training, reference, CLIP B)",
            ({ frames: { train, reference, clip } }) =>
              `${train}, ${reference}, ${clip}`,
          ],
          ["training – reference", (row) => decimal(row.trainReference, 1)],
          ["training – CLIP B", (row) => decimal(row.trainClip, 1)],
          ["reference – CLIP B", (row) => decimal(row.referenceClip, 1)],
        ]),
      )],
    };
    await writeReport(out, report, rows);
    console.log(
      `${reportText(report, terminalColumns())}\n${
        joinPath(out, "frames.html")
      }`,
    );
  },
});
