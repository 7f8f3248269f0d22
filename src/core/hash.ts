/**
 * SHA-256 of bytes.
 *
 * @param bytes What is hashed; text is hashed as UTF-8.
 * @returns Lower-case hexadecimal, 64 characters.
 *
 * @example
 * ```ts
 * const name = await sha256("a photo of a fox");
 * ```
 */
export async function sha256(
  bytes: Uint8Array<ArrayBuffer> | ArrayBuffer | string,
): Promise<string> {
  const data = typeof bytes === "string"
    ? new TextEncoder().encode(bytes)
    : bytes;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}
