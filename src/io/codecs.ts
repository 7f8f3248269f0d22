/**
 * Decoders in WebAssembly: JPEG, WebP and AVIF.
 *
 * They are jSquash's builds (Apache-2.0) of mozjpeg, libwebp and libavif:
 * 166, 138 and 1171 kB, fetched when the first such picture comes, without
 * native code, in Deno, Node and browsers. Read with them, JPEG and WebP have
 * Pillow's values bit for bit (see tests/fixtures/pictures), which no decoder
 * in plain JavaScript has.
 *
 * @module
 */
import { cannot, reasonOf } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { readBytes } from "./files.ts";

/** A format that is decoded in WebAssembly. */
export type Codec = "jpeg" | "webp" | "avif";

/** What the glue around a decoder makes of its binary. */
interface Instance {
  decode(bytes: Uint8Array, ...settings: (number | boolean)[]): Image | null;
}

/** RGBA, 8 bits. */
interface Image {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8ClampedArray | Uint16Array;
}

type Factory = (options: Record<string, unknown>) => Promise<Instance>;

/** A decoder: where its binary is, its glue, and what else decode takes. */
interface Source {
  readonly binary: string;
  /** The package's version, for modules loaded over https. */
  readonly version: string;
  readonly glue: () => Promise<{ default: unknown }>;
  readonly setting?: number | boolean;
}

const SOURCES: Readonly<Record<Codec, Source>> = {
  jpeg: {
    binary: "@jsquash/jpeg/codec/dec/mozjpeg_dec.wasm",
    version: "1.6.0",
    glue: () => import("@jsquash/jpeg/codec/dec/mozjpeg_dec.js"),
    // EXIF is this library's affair.
    setting: false,
  },
  webp: {
    binary: "@jsquash/webp/codec/dec/webp_dec.wasm",
    version: "1.5.0",
    glue: () => import("@jsquash/webp/codec/dec/webp_dec.js"),
  },
  avif: {
    binary: "@jsquash/avif/codec/dec/avif_dec.wasm",
    version: "2.1.1",
    glue: () => import("@jsquash/avif/codec/dec/avif_dec.js"),
    // Bits a sample.
    setting: 8,
  },
};

/** Compiled binaries; what is compiled holds no picture. */
const compiled = new Map<Codec, Promise<WebAssembly.Module | undefined>>();

/**
 * Compiles a decoder's binary; nothing where only its own glue knows where it
 * lies, as in a bundle for browsers.
 */
async function compile(codec: Codec): Promise<WebAssembly.Module | undefined> {
  const { binary, version } = SOURCES[codec];
  const url = machine.packageFile(binary, version);
  if (!url) return undefined;
  const bytes = url.protocol === "file:"
    ? await readBytes(url)
    : new Uint8Array(await (await fetch(url)).arrayBuffer());
  return await WebAssembly.compile(bytes);
}

/**
 * Decodes a picture to RGBA, each in an instance of its own: its memory goes
 * with the picture, and what one broken file left behind meets no other.
 *
 * @param codec The format.
 * @param bytes The file.
 * @returns 8-bit RGBA, as it is stored, and what the decoder complained about.
 * @throws If the decoder cannot be loaded, or refuses the file.
 */
export async function decodeRgba(
  codec: Codec,
  bytes: Uint8Array,
): Promise<{
  width: number;
  height: number;
  data: Uint8Array;
  complaints: string[];
}> {
  const { glue, setting } = SOURCES[codec];
  const what = `decode ${codec === "jpeg" ? "a JPEG" : `a picture (${codec})`}`;
  const complaints: string[] = [];
  const note = (line: unknown) => void complaints.push(String(line));
  let instance: Instance;
  try {
    if (!compiled.has(codec)) compiled.set(codec, compile(codec));
    const module = await compiled.get(codec);
    const factory = (await glue()).default as Factory;
    instance = await factory({
      noInitialRun: true,
      print: note,
      printErr: note,
      ...(module ? { instantiateWasm: starter(module) } : {}),
    });
  } catch (error) {
    compiled.delete(codec);
    throw cannot(
      what,
      `the decoder of ${SOURCES[codec].binary}`,
      reasonOf(error),
    );
  }
  let image: Image | null;
  try {
    image = instance.decode(
      bytes,
      ...(setting === undefined ? [] : [setting]),
    );
  } catch (error) {
    // The decoder has said why before it gave up.
    const reason = complaints.at(-1) ?? reasonOf(error);
    throw cannot(what, "a file that its decoder reads", reason);
  }
  if (!image) {
    const reason = complaints.at(-1) ?? "one it gives up on";
    throw cannot(what, "a file that its decoder reads", reason);
  }
  const { width, height, data } = image;
  return {
    width,
    height,
    data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
    complaints,
  };
}

/** What emscripten's glue calls to get its exports. */
function starter(module: WebAssembly.Module) {
  return (
    imports: WebAssembly.Imports,
    done: (instance: WebAssembly.Instance) => void,
  ) => {
    const instance = new WebAssembly.Instance(module, imports);
    done(instance);
    return instance.exports;
  };
}
