/**
 * Loaded before each test file that `deno task test` runs, and before what tests
 * start: two files run at once, so each computes on one core. On two threads
 * each, on two cores, they wait for each other; results are the same bits.
 *
 * @module
 */
Object.defineProperty(navigator, "hardwareConcurrency", { get: () => 1 });
