/**
 * A JPEG of four components as two JPEGs of three, without decoding it.
 *
 * Huffman codes of a block are copied bit by bit, as no block depends on
 * another component's, so that both have the samples of the first exactly.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/** One of a JPEG's components. */
export interface Component {
  /** Its name in the file. */
  readonly id: number;
  /** Blocks of an MCU, across. */
  readonly h: number;
  /** Blocks of an MCU, down. */
  readonly v: number;
}

/** What a JPEG says before its first scan. */
export interface Frame {
  /** Width in pixels. */
  readonly width: number;
  /** Height in pixels. */
  readonly height: number;
  /** Whether it is progressive. */
  readonly progressive: boolean;
  /** In the order of the file. */
  readonly components: readonly Component[];
  /** Transform in Adobe's segment: 0 none, 1 YCbCr, 2 YCCK. */
  readonly adobe?: number;
}

const WHAT = "decode a JPEG of four inks";

/** Codes of 16 bits to what they begin with: length << 8 | symbol, or 0. */
type Codes = Uint16Array;

/**
 * Splits a JPEG of four components.
 *
 * @param bytes The file: baseline or progressive, with Huffman codes.
 * @param frame Its head.
 * @returns Two files, marked as RGB: components 1 to 3, and three of which the
 * last is the fourth.
 * @throws If it is cut off, or sampled as no program samples it.
 */
export function threeOfFour(
  bytes: Uint8Array,
  frame: Frame,
): [colours: Uint8Array, black: Uint8Array] {
  const most = (of: readonly Component[]) => {
    const [h, v] = [of.map((c) => c.h), of.map((c) => c.v)];
    return `${Math.max(...h)}×${Math.max(...v)}`;
  };
  const all = most(frame.components);
  // What the others are sampled against has to stay in each of the two.
  const drop = [0, 1, 2].find((left) =>
    most(frame.components.filter((_, k) => k !== left)) === all
  );
  if (drop === undefined || most(frame.components.slice(0, 3)) !== all) {
    throw cannot(WHAT, "black sampled no finer than colours", all);
  }
  return [
    without(bytes, frame, 3),
    without(bytes, frame, drop),
  ];
}

/** The file without one of its components. */
function without(bytes: Uint8Array, frame: Frame, drop: number): Uint8Array {
  const dropped = frame.components[drop].id;
  const out = new Output(bytes.length);
  const tables = new Map<number, Codes>();
  let interval = 0;
  out.raw([0xff, 0xd8]);
  // Adobe's sign for: no transform, these are red, green and blue.
  const sign = [0x41, 0x64, 0x6f, 0x62, 0x65, 0, 100, 0, 0, 0, 0, 0];
  out.segment(0xee, sign);
  let at = 2;
  while (at + 2 <= bytes.length) {
    if (bytes[at] !== 0xff) throw cutOff();
    const marker = bytes[at + 1];
    if (marker === 0xff) {
      at++;
      continue;
    }
    if (marker === 0xd9) {
      out.raw([0xff, 0xd9]);
      return out.bytes();
    }
    const end = at + 2 + (bytes[at + 2] << 8 | bytes[at + 3]);
    if (end > bytes.length || end < at + 4) throw cutOff();
    const content = bytes.subarray(at + 4, end);
    at = end;
    if (marker === 0xda) {
      at = copyScan(bytes, at, content, {
        frame,
        dropped,
        tables,
        interval,
        out,
      });
      continue;
    }
    // Other programs' segments would say what the colours are.
    if (marker >= 0xe0 && marker <= 0xef) continue;
    if (marker === 0xdd) interval = content[0] << 8 | content[1];
    if (marker === 0xc4) readTables(content, tables);
    if (marker >= 0xc0 && marker <= 0xc2) {
      const kept = frame.components.flatMap((_, k) =>
        k === drop ? [] : [...content.subarray(6 + 3 * k, 9 + 3 * k)]
      );
      out.segment(marker, [...content.subarray(0, 5), 3, ...kept]);
    } else out.segment(marker, content);
  }
  throw cutOff();
}

function cutOff(): Error {
  return cannot(WHAT, "a whole JPEG", "one that is cut off");
}

/** Huffman tables of a DHT segment, by class << 4 | number. */
function readTables(content: Uint8Array, tables: Map<number, Codes>): void {
  for (let at = 0; at + 17 <= content.length;) {
    const codes = new Uint16Array(1 << 16);
    const name = content[at];
    let symbol = at + 17;
    let first = 0;
    for (let length = 1; length <= 16; length++) {
      for (let n = content[at + length]; n > 0; n--) {
        const span = 1 << (16 - length);
        codes.fill(length << 8 | content[symbol++], first, first + span);
        first += span;
      }
    }
    tables.set(name, codes);
    at = symbol;
  }
}

/** What copying a scan needs besides the scan. */
interface Around {
  readonly frame: Frame;
  /** Name of the component that is left out. */
  readonly dropped: number;
  readonly tables: ReadonlyMap<number, Codes>;
  /** MCUs between restarts; 0: there are none. */
  readonly interval: number;
  readonly out: Output;
}

/** Copies what is kept of a scan; returns where the next marker is. */
function copyScan(
  bytes: Uint8Array,
  start: number,
  head: Uint8Array,
  around: Around,
): number {
  const { frame, dropped, tables, out } = around;
  const end = scanEnd(bytes, start);
  const count = head[0];
  const parts = Array.from({ length: count }, (_, k) => {
    const id = head[1 + 2 * k];
    const component = frame.components.find((c) => c.id === id);
    if (!component) throw cutOff();
    return { component, tables: head[2 + 2 * k], kept: id !== dropped };
  });
  const kept = parts.filter((part) => part.kept);
  if (kept.length === 0) return end;
  const spectrum = [...head.subarray(1 + 2 * count, 4 + 2 * count)];
  out.segment(0xda, [
    kept.length,
    ...kept.flatMap((part) => [part.component.id, part.tables]),
    ...spectrum,
  ]);
  if (kept.length === count) {
    out.raw(bytes.subarray(start, end));
    return end;
  }
  // A component alone is stored in another order than among others.
  if (kept.length === 1) {
    throw cannot(WHAT, "scans of one, three or four components", count);
  }
  const { interval } = around;
  const input = new Input(bytes.subarray(start, end));
  const refined = frame.progressive && spectrum[2] >> 4 > 0;
  const across = Math.max(...frame.components.map((c) => c.h)) * 8;
  const down = Math.max(...frame.components.map((c) => c.v)) * 8;
  const total = Math.ceil(frame.width / across) *
    Math.ceil(frame.height / down);
  for (let mcu = 0; mcu < total; mcu++) {
    if (interval > 0 && mcu > 0 && mcu % interval === 0) {
      input.restart();
      out.flush();
      out.raw([0xff, 0xd0 + (mcu / interval - 1) % 8]);
    }
    for (const { component, tables: pair, kept } of parts) {
      const dc = tables.get(pair >> 4);
      const ac = tables.get(0x10 | pair & 15);
      for (let block = component.h * component.v; block > 0; block--) {
        const to = kept ? out : undefined;
        if (refined) {
          copyBits(input, 1, to);
          continue;
        }
        copyBits(input, copyCode(input, dc, to), to);
        if (!frame.progressive) copyAc(input, ac, to);
      }
    }
  }
  if (input.isPastEnd()) throw cutOff();
  out.flush();
  return end;
}

/** Where entropy-coded bytes end: before a marker that is no restart. */
function scanEnd(bytes: Uint8Array, start: number): number {
  for (let at = start; at + 1 < bytes.length; at++) {
    if (bytes[at] !== 0xff) continue;
    const next = bytes[at + 1];
    if (next !== 0 && next !== 0xff && (next < 0xd0 || next > 0xd7)) return at;
  }
  return bytes.length;
}

/** The 63 coefficients behind a block's first. */
function copyAc(
  input: Input,
  codes: Codes | undefined,
  out: Output | undefined,
): void {
  for (let k = 1; k < 64; k++) {
    const symbol = copyCode(input, codes, out);
    const [run, size] = [symbol >> 4, symbol & 15];
    if (size === 0 && run !== 15) return;
    k += run;
    copyBits(input, size, out);
  }
}

function copyCode(
  input: Input,
  codes: Codes | undefined,
  out: Output | undefined,
): number {
  const entry = codes?.[input.peek()] ?? 0;
  if (entry === 0) throw cannot(WHAT, "Huffman codes of its tables", "others");
  copyBits(input, entry >> 8, out);
  return entry & 255;
}

function copyBits(
  input: Input,
  count: number,
  out: Output | undefined,
): void {
  const bits = input.take(count);
  out?.bits(bits, count);
}

/** Bits of entropy-coded bytes, highest first; ones behind the end. */
class Input {
  #at = 0;
  #held = 0;
  #count = 0;
  #invented = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** The next 16 bits, which stay. */
  peek(): number {
    this.#fill();
    return (this.#held >>> (this.#count - 16)) & 0xffff;
  }

  /** The next bits, at most 16. */
  take(count: number): number {
    this.#fill();
    this.#count -= count;
    return (this.#held >>> this.#count) & ((1 << count) - 1);
  }

  /** Goes behind the next restart marker. */
  restart(): void {
    if (this.isPastEnd()) throw cutOff();
    this.#held = this.#count = this.#invented = 0;
    while (this.#at < this.#bytes.length) {
      const found = this.#bytes[this.#at] === 0xff &&
        this.#bytes[this.#at + 1] >= 0xd0 && this.#bytes[this.#at + 1] <= 0xd7;
      this.#at += found ? 2 : 1;
      if (found) return;
    }
  }

  /** Whether more bits were taken than there are. */
  isPastEnd(): boolean {
    return this.#invented > this.#count;
  }

  #fill(): void {
    while (this.#count < 16) {
      const byte = this.#bytes[this.#at];
      const marker = byte === 0xff && this.#bytes[this.#at + 1] !== 0;
      let next = 0xff;
      if (byte === undefined || marker) this.#invented += 8;
      else {
        next = byte;
        this.#at += byte === 0xff ? 2 : 1;
      }
      // At most 24 bits are held.
      this.#held = (this.#held << 8 | next) & 0xffffff;
      this.#count += 8;
    }
  }
}

/** Bytes that grow, with bits among them. */
class Output {
  #bytes: Uint8Array;
  #length = 0;
  #held = 0;
  #count = 0;

  constructor(size: number) {
    this.#bytes = new Uint8Array(size + 1024);
  }

  raw(bytes: ArrayLike<number>): void {
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  segment(marker: number, content: ArrayLike<number>): void {
    const length = content.length + 2;
    this.raw([0xff, marker, length >> 8, length & 255]);
    this.raw(content);
  }

  bits(value: number, count: number): void {
    this.#held = (this.#held << count | value) & 0xffffff;
    this.#count += count;
    while (this.#count >= 8) {
      this.#count -= 8;
      this.#put((this.#held >>> this.#count) & 255);
    }
  }

  /** Ones up to the next whole byte. */
  flush(): void {
    if (this.#count > 0) {
      this.bits((1 << (8 - this.#count)) - 1, 8 - this.#count);
    }
  }

  bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  #put(byte: number): void {
    this.#room(2);
    this.#bytes[this.#length++] = byte;
    // A 0 behind 0xFF tells it from a marker.
    if (byte === 0xff) this.#bytes[this.#length++] = 0;
  }

  #room(count: number): void {
    if (this.#length + count <= this.#bytes.length) return;
    const grown = new Uint8Array(2 * (this.#length + count));
    grown.set(this.#bytes);
    this.#bytes = grown;
  }
}
