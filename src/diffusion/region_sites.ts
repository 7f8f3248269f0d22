/**
 * Where in a UNet the regions of a layout act.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { joinPath, readJson } from "../io/files.ts";
import { downsampleFactor } from "../models/autoencoder.ts";
import { parseAutoencoderConfig, parseUNetConfig } from "../models/config.ts";
import { attentionGrids } from "../models/unet.ts";
import { type LayoutInput, parseLayout, resolveLayout } from "./layout.ts";
import { shapeMap } from "./regions.ts";

/**
 * Counts the cross-attention layers at whose resolution every region of a
 * layout has a cell.
 *
 * @param folder Folder of the model.
 * @param layout The layout, with a size.
 * @throws If the model cannot draw pictures of this size.
 */
export async function actingSites(
  folder: string,
  layout: LayoutInput,
): Promise<{ acting: number; all: number }> {
  const configOf = (part: string) =>
    readJson(joinPath(folder, part, "config.json"));
  const factor = downsampleFactor(
    parseAutoencoderConfig(await configOf("vae")),
  );
  const { layout: { size }, regions } = await resolveLayout(
    parseLayout(layout),
  );
  const { width, height } = size!;
  if (width % factor !== 0 || height % factor !== 0) {
    const sides = `sides that are multiples of ${factor} pixels`;
    throw cannot("draw pictures", sides, `${width}×${height}`);
  }
  const grids = attentionGrids(parseUNetConfig(await configOf("unet")), {
    height: height / factor,
    width: width / factor,
  });
  const acting = grids.filter(({ height, width }) =>
    regions.every(({ shape }) => shapeMap(shape, height, width).some((v) => v))
  );
  return { acting: acting.length, all: grids.length };
}
