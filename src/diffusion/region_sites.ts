/**
 * Where in a UNet the regions of a layout act.
 *
 * @module
 */
import type { UNetConfig } from "../models/config.ts";
import { attentionGrids } from "../models/unet.ts";
import { type LayoutInput, parseLayout, resolveLayout } from "./layout.ts";
import { shapeMap } from "./regions.ts";

/**
 * Counts the cross-attention sites at which every region of a layout has a cell.
 *
 * @param config The UNet's config.
 * @param layout The layout, with a size.
 * @param factor Pixels of a latent cell's side.
 */
export async function actingSites(
  config: UNetConfig,
  layout: LayoutInput,
  factor: number,
): Promise<{ acting: number; all: number }> {
  const { layout: { size }, regions } = await resolveLayout(
    parseLayout(layout),
  );
  const grids = attentionGrids(config, {
    height: size!.height / factor,
    width: size!.width / factor,
  });
  const acting = grids.filter(({ height, width }) =>
    regions.every(({ shape }) => shapeMap(shape, height, width).some((v) => v))
  );
  return { acting: acting.length, all: grids.length };
}
