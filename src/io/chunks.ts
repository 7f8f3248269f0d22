/**
 * The pieces that picture files are made of.
 *
 * @module
 */

/** A piece of a file: its kind, and where its content lies. */
export interface Piece {
  /** Its name in the file. */
  readonly kind: string;
  /** First byte of its content. */
  readonly start: number;
  /** First byte behind it. */
  readonly end: number;
}

const latin = new TextDecoder("latin1");

/** Bytes as text, one character each. */
export function textAt(
  bytes: Uint8Array,
  start: number,
  length: number,
): string {
  return latin.decode(bytes.subarray(start, start + length));
}

/** A view of just these bytes. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * Segments of a JPEG up to its first scan, by their markers in hexadecimal.
 *
 * @param bytes The file.
 */
export function* jpegSegments(bytes: Uint8Array): Generator<Piece> {
  const view = viewOf(bytes);
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff;) {
    const marker = bytes[at + 1];
    // Any number of 0xFF may fill the space before a marker (T.81, B.1.1.2).
    if (marker === 0xff) {
      at++;
      continue;
    }
    // The picture begins or the file ends.
    if (marker === 0xda || marker === 0xd9) return;
    // TEM and restarts stand alone.
    if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += 2;
      continue;
    }
    const length = view.getUint16(at + 2);
    if (length < 2) return;
    const end = Math.min(at + 2 + length, bytes.length);
    yield { kind: marker.toString(16), start: at + 4, end };
    at = end;
  }
}

/**
 * Chunks of a PNG, up to the first that is cut off.
 *
 * @param bytes The file.
 */
export function* pngChunks(bytes: Uint8Array): Generator<Piece> {
  const view = viewOf(bytes);
  for (let at = 8; at + 12 <= bytes.length;) {
    const start = at + 8;
    const end = start + view.getUint32(at);
    if (end + 4 > bytes.length) return;
    yield { kind: textAt(bytes, at + 4, 4), start, end };
    at = end + 4;
  }
}

/**
 * Chunks of a WebP, or of one of its frames.
 *
 * @param bytes The file.
 * @param from Where the first chunk begins.
 * @param to Where the last one ends.
 */
export function* webpChunks(
  bytes: Uint8Array,
  from = 12,
  to = bytes.length,
): Generator<Piece> {
  const view = viewOf(bytes);
  for (let at = from; at + 8 <= to;) {
    const start = at + 8;
    const length = view.getUint32(at + 4, true);
    const end = Math.min(start + length, to);
    yield { kind: textAt(bytes, at, 4), start, end };
    // Chunks begin at even places.
    at = start + length + length % 2;
  }
}

/**
 * Boxes of an AVIF between two places.
 *
 * @param bytes The file.
 * @param from Where the first box begins.
 * @param to Where the last one ends.
 */
export function* boxes(
  bytes: Uint8Array,
  from: number,
  to: number,
): Generator<Piece> {
  const view = viewOf(bytes);
  for (let at = from; at + 8 <= to;) {
    let size = view.getUint32(at);
    let start = at + 8;
    if (size === 1 && at + 16 <= to) {
      size = Number(view.getBigUint64(at + 8));
      start += 8;
    }
    // Zero: up to the end of the file.
    const end = size === 0 ? to : Math.min(at + size, to);
    if (end < start) return;
    yield { kind: textAt(bytes, at + 4, 4), start, end };
    at = end;
  }
}
