import { fails } from "./_message.ts";

/**
 * Throws unless two numbers differ by at most `tolerance`, which is by default
 * a ten-millionth of the expected value.
 */
export function assertAlmostEquals(
  actual: number,
  expected: number,
  tolerance?: number,
  msg?: string,
): void {
  if (Object.is(actual, expected)) return;
  const allowed = tolerance ??
    (Number.isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7);
  const delta = Math.abs(expected - actual);
  // Written so that NaN fails.
  if (delta <= allowed) return;
  fails(
    `Expected actual: "${actual}" to be close to "${expected}": ` +
      `delta "${delta}" is greater than "${allowed}"`,
    msg,
  );
}
