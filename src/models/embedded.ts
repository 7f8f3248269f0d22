/**
 * Where the weights are that this library comes with.
 *
 * @module
 */

/**
 * The folder of the embedded model, wherever this library lies: on a disk, on a
 * server, in an npm package.
 */
export const embeddedModel: URL = new URL(
  "../../models/micro/",
  import.meta.url,
);
