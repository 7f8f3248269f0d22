/**
 * The command line.
 *
 * @module
 */

/** Nothing yet. */
export async function main(_args: readonly string[]): Promise<number> {
  return await Promise.resolve(0);
}
