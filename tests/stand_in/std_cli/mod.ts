/**
 * A small stand-in for `@std/cli`, which tests use so that
 * they need no other registry than npm's. It holds `parseArgs` with the same options,
 * behaviour and types; what the project does not use is left out, so that
 * using it is a compile error and not a surprise.
 *
 * @module
 */
export * from "./parse_args.ts";
