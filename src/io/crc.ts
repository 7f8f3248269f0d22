/**
 * The check sum of zip archives and PNG files.
 *
 * @module
 */

let table: Uint32Array | undefined;

/**
 * CRC-32 with the reflected polynomial 0xedb88320.
 *
 * @param data The bytes.
 *
 * @example
 * ```ts
 * crc32(new TextEncoder().encode("123456789")); // 0xcbf43926
 * ```
 */
export function crc32(data: Uint8Array): number {
  const rows = table ??= Uint32Array.from({ length: 256 }, (_, n) => {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
    return c;
  });
  let crc = 0xffffffff;
  for (let i = 0; i < data.length; i++) {
    crc = rows[(crc ^ data[i]) & 255] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
