/**
 * Compiles `simd.as` and `f64.as` (AssemblyScript) and embeds them in
 * `src/core/kernels/simd_wasm.ts` and `f64_wasm.ts`.
 *
 * Only for those who change the kernels: the result is committed, so nothing
 * of this is needed to use the library. Run `deno run -A --no-lock` on this
 * file: in the common lock file the compiler would cost every clone 100 MB.
 *
 * @module
 */
import { encodeBase64 } from "../../../src/core/kernels/base64.ts";

/** The part of the AssemblyScript compiler that is used here. */
interface Asc {
  main(args: string[], io: {
    readFile(name: string): string | null;
    writeFile(name: string, data: string | Uint8Array): void;
    stderr: { write(text: string): void };
  }): Promise<{ error: Error | null }>;
}

/**
 * Compiles a SIMD module with the pinned AssemblyScript from npm.
 *
 * @param source The text of `simd.as` or `f64.as`.
 * @returns The bytes of the module.
 * @throws If the compiler cannot be had or rejects the source.
 */
export async function compile(source: string): Promise<Uint8Array> {
  // Not a literal: build-time only, so that no user has to download it.
  const compiler = "npm:assemblyscript@0.28.20/asc";
  const asc = await import(compiler) as Asc;
  let bytes: Uint8Array | undefined;
  let log = "";
  const { error } = await asc.main([
    "simd.ts",
    "--outFile",
    "simd.wasm",
    "-O3",
    "--noAssert",
    "--importMemory",
    // As much as tfjs's: memory with a maximum can be shared.
    "--maximumMemory",
    "65536",
    "--runtime",
    "stub",
    "--enable",
    "simd",
    "--enable",
    "relaxed-simd",
  ], {
    // The extension .as keeps TypeScript's own tools away from the file.
    readFile: (name) => name === "simd.ts" ? source : null,
    writeFile: (name, data) => {
      if (name === "simd.wasm") bytes = data as Uint8Array;
    },
    stderr: { write: (text) => void (log += text) },
  });
  if (error || !bytes) throw new Error(`Cannot compile the kernels: ${log}`);
  return bytes;
}

if (import.meta.main) {
  const kernels = new URL("../../../src/core/kernels/", import.meta.url);
  for (const name of ["simd", "f64"]) {
    const source = await Deno.readTextFile(
      new URL(`${name}.as`, import.meta.url),
    );
    const text = encodeBase64(await compile(source));
    await Deno.writeTextFile(
      new URL(`${name}_wasm.ts`, kernels),
      `/** \`tests/tools/wasm/${name}.as\`, compiled by \`build.ts\` there: do not edit. */
export const ${name.toUpperCase()}_WASM: string =
  // deno-fmt-ignore
  "${text}";
`,
    );
  }
}
