/**
 * Number formats of all tables, figures and pages.
 *
 * @module
 */

/** A number, or null where there is none: JSON has no NaN and no infinity. */
export type Maybe = number | null;

/** A mean and the ends of its interval; null or not finite where there is none. */
export interface Interval {
  /** The mean. */
  readonly mean: Maybe;
  /** Lower end. */
  readonly low: Maybe;
  /** Upper end. */
  readonly high: Maybe;
}

function isThere(value: Maybe | undefined): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

/**
 * A number with the given decimals and a true minus sign; `–` for no number.
 *
 * @param value The number.
 * @param digits Decimals.
 * @default digits 3
 */
export function decimal(value: Maybe | undefined, digits = 3): string {
  if (!isThere(value)) return "–";
  const text = value.toFixed(digits);
  // −0.000 is written 0.000.
  const zero = Number(text) === 0;
  return (zero ? text.replace("-", "") : text).replace("-", "−");
}

/**
 * A signed number: `+0.012`, `−0.094`.
 *
 * @param value The number.
 * @param digits Decimals.
 * @default digits 3
 */
export function signed(value: Maybe | undefined, digits = 3): string {
  const text = decimal(value, digits);
  return isThere(value) && !text.startsWith("−") ? `+${text}` : text;
}

/**
 * An interval: `0.012 to 0.094`; `–` where an end is not known.
 *
 * @param interval Its ends.
 * @param digits Decimals.
 * @default digits 3
 */
export function range(
  { low, high }: Pick<Interval, "low" | "high">,
  digits = 3,
): string {
  return isThere(low) && isThere(high)
    ? `${decimal(low, digits)} to ${decimal(high, digits)}`
    : "–";
}

/**
 * A mean with its interval, where it has one: `0.75 (0.61 to 0.88)`.
 *
 * @param interval Mean and ends; `–` where there is none.
 * @param digits Decimals.
 * @default digits 3
 */
export function interval(found: Interval | undefined, digits = 3): string {
  if (!isThere(found?.mean)) return "–";
  const mean = decimal(found.mean, digits);
  const ends = range(found, digits);
  return ends === "–" ? mean : `${mean} (${ends})`;
}

/**
 * A share in per cent, with its interval: `88 % (70 to 95)`.
 *
 * @param share Mean and ends, 1 is all.
 */
export function percent({ mean, low, high }: Interval): string {
  const hundred = (value: Maybe) => isThere(value) ? 100 * value : null;
  if (!isThere(mean)) return "–";
  const whole = decimal(hundred(mean), 0);
  const ends = range({ low: hundred(low), high: hundred(high) }, 0);
  return ends === "–" ? `${whole} %` : `${whole} % (${ends})`;
}

/**
 * From one number to another: `0.816 → 0.701 (−0.115)`.
 *
 * @param from The first.
 * @param to The second.
 */
export function change(from: Maybe, to: Maybe): string {
  const difference = isThere(from) && isThere(to) ? to - from : null;
  return `${decimal(from)} → ${decimal(to)} (${signed(difference)})`;
}

/**
 * A duration: `42 s`, `3 min 20 s`, `1 h 05 min`.
 *
 * @param seconds How long.
 */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const pad = (n: number) => String(n).padStart(2, "0");
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min ${pad(s % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min`;
}
