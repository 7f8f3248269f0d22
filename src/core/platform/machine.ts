/**
 * The machine that this runs on.
 *
 * Chosen once, when the library is loaded, by what the runtime says of itself:
 * one build runs everywhere.
 *
 * @module
 */
import { browserMachine } from "./browser.ts";
import { denoMachine } from "./deno.ts";
import type { Machine } from "./machine_type.ts";
import { isNode, nodeMachine } from "./node.ts";

/** Deno, Node or a browser. */
export const machine: Machine = "Deno" in globalThis
  ? denoMachine()
  : isNode()
  ? nodeMachine()
  : browserMachine();
