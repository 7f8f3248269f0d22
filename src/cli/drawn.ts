/**
 * Names of the pictures that `sample` draws, so that others know them again.
 *
 * @module
 */

/** The name of a picture by its number, from 0: `007.png`. */
export function pictureName(number: number): string {
  return `${String(number).padStart(3, "0")}.png`;
}

/** The number of a picture by its name; none if `sample` gives no such name. */
export function pictureNumber(name: string): number | undefined {
  const number = parseInt(name, 10);
  return pictureName(number) === name ? number : undefined;
}
