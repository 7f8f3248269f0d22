/**
 * Long work is an async generator; this runs one to its end.
 *
 * @module
 */

/**
 * Runs a generator to its end.
 *
 * @param run Yields records of progress, returns a result.
 * @param onRecord Called with every record.
 * @returns The result.
 *
 * @example
 * ```ts ignore
 * const fused = await finish(fuse(base, concepts), console.log);
 * ```
 */
export async function finish<Record, Result>(
  run: AsyncGenerator<Record, Result, void>,
  onRecord?: (record: Record) => void | Promise<void>,
): Promise<Result> {
  for (let next = await run.next();; next = await run.next()) {
    if (next.done) return next.value;
    await onRecord?.(next.value);
  }
}
