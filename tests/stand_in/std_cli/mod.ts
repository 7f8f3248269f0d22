/**
 * A small stand-in for `@std/cli`, used through `links` in deno.json where the
 * JSR registry cannot be reached. It holds `parseArgs` with the same options,
 * behaviour and types; what the project does not use is left out, so that
 * using it is a compile error and not a surprise.
 *
 * @module
 */
export * from "./parse_args.ts";
