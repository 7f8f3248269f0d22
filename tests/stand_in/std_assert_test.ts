// The stand-in cannot be trusted to test itself, so this file looks at
// thrown values with plain `throw`.
import * as std from "@std/assert";
import { assertEquals as fromSubPath } from "@std/assert/equals";
import { AssertionError } from "@std/assert/assertion-error";

type Case = [name: string, holds: () => unknown, fails: () => unknown];

const cyclic = (): { self?: unknown } => {
  const value: { self?: unknown } = {};
  value.self = value;
  return value;
};

// An asserting function needs an explicitly typed name to be called by.
const assert: (expr: unknown, msg?: string) => asserts expr = std.assert;

const cases: Case[] = [
  ["assert", () => std.assert(1), () => std.assert(0)],
  ["assertFalse", () => std.assertFalse(""), () => std.assertFalse("x")],
  [
    "assertEquals",
    () => std.assertEquals({ a: [1, NaN] }, { a: [1, NaN] }),
    () => std.assertEquals({ a: [1, 2] }, { a: [1, 3] }),
  ],
  [
    "assertNotEquals",
    () => std.assertNotEquals([1], [2]),
    () => std.assertNotEquals([1], [1]),
  ],
  [
    "assertStrictEquals",
    () => std.assertStrictEquals(NaN, NaN),
    () => std.assertStrictEquals([], []),
  ],
  [
    "assertNotStrictEquals",
    () => std.assertNotStrictEquals([], []),
    () => std.assertNotStrictEquals(1, 1),
  ],
  [
    "assertAlmostEquals",
    () => std.assertAlmostEquals(1, 1 + 5e-8),
    () => std.assertAlmostEquals(1, 1 + 5e-7),
  ],
  [
    "assertAlmostEquals with a tolerance",
    () => std.assertAlmostEquals(1, 1.05, 0.1),
    () => std.assertAlmostEquals(1, 1.2, 0.1),
  ],
  [
    "assertAlmostEquals with NaN",
    () => std.assertAlmostEquals(NaN, NaN),
    () => std.assertAlmostEquals(NaN, 1, 10),
  ],
  [
    "assertArrayIncludes",
    () => std.assertArrayIncludes([1, { a: 1 }], [{ a: 1 }]),
    () => std.assertArrayIncludes([1, { a: 1 }], [{ a: 2 }]),
  ],
  [
    "assertExists",
    () => std.assertExists(0),
    () => std.assertExists(undefined),
  ],
  [
    "assertExists, null",
    () => std.assertExists(""),
    () => std.assertExists(null),
  ],
  [
    "assertGreater",
    () => std.assertGreater(2, 1),
    () => std.assertGreater(1, 1),
  ],
  [
    "assertGreaterOrEqual",
    () => std.assertGreaterOrEqual(1, 1),
    () => std.assertGreaterOrEqual(0, 1),
  ],
  ["assertLess", () => std.assertLess(1, 2), () => std.assertLess(1, 1)],
  [
    "assertLess with NaN",
    () => std.assertLess(1, 2),
    () => std.assertLess(NaN, 1),
  ],
  [
    "assertLessOrEqual",
    () => std.assertLessOrEqual(1, 1),
    () => std.assertLessOrEqual(2, 1),
  ],
  [
    "assertInstanceOf",
    () => std.assertInstanceOf(new Date(), Date),
    () => std.assertInstanceOf({}, Date),
  ],
  [
    "assertNotInstanceOf",
    () => std.assertNotInstanceOf({}, Date),
    () => std.assertNotInstanceOf(new Date(), Date),
  ],
  [
    "assertIsError",
    () => std.assertIsError(new TypeError("a b"), TypeError, "b"),
    () => std.assertIsError("a"),
  ],
  [
    "assertIsError with the class",
    () => std.assertIsError(new TypeError("a"), Error),
    () => std.assertIsError(new TypeError("a"), RangeError),
  ],
  [
    "assertIsError with a pattern",
    () => std.assertIsError(new TypeError("a b"), Error, /^a/),
    () => std.assertIsError(new TypeError("a b"), Error, /^b/),
  ],
  [
    "assertMatch",
    () => std.assertMatch("abc", /b/g),
    () => std.assertMatch("abc", /d/),
  ],
  [
    "assertNotMatch",
    () => std.assertNotMatch("abc", /d/),
    () => std.assertNotMatch("abc", /b/),
  ],
  [
    "assertStringIncludes",
    () => std.assertStringIncludes("abc", "bc"),
    () => std.assertStringIncludes("abc", "cb"),
  ],
  [
    "assertObjectMatch",
    () => std.assertObjectMatch({ a: { b: 1, c: 2 } }, { a: { b: 1 } }),
    () => std.assertObjectMatch({ a: { b: 1, c: 2 } }, { a: { b: 2 } }),
  ],
  [
    "assertObjectMatch, missing key",
    () => std.assertObjectMatch({ a: undefined }, { a: undefined }),
    () => std.assertObjectMatch({}, { a: undefined }),
  ],
  [
    "assertObjectMatch, array",
    () => std.assertObjectMatch({ a: [{ b: 1, c: 1 }] }, { a: [{ b: 1 }] }),
    () => std.assertObjectMatch({ a: [1, 2] }, { a: [1] }),
  ],
  [
    "assertThrows",
    () =>
      std.assertThrows(() => {
        throw new Error("no");
      }),
    () => std.assertThrows(() => 1),
  ],
  [
    "assertThrows with the class",
    () => std.assertThrows(() => new URL("nowhere"), TypeError),
    () => std.assertThrows(() => new URL("nowhere"), RangeError),
  ],
  [
    "assertThrows with the message",
    () => std.assertThrows(() => std.fail("why"), AssertionError, "why"),
    () => std.assertThrows(() => std.fail("why"), AssertionError, "how"),
  ],
  [
    "assertRejects",
    () => std.assertRejects(() => Promise.reject(new Error("no"))),
    () => std.assertRejects(() => Promise.resolve(1)),
  ],
  [
    "assertRejects with class and message",
    () => std.assertRejects(() => Promise.reject(new Error("no")), Error, "no"),
    () =>
      std.assertRejects(() => Promise.reject(new Error("no")), Error, "yes"),
  ],
  [
    "assertRejects on a synchronous throw",
    () => undefined,
    () =>
      std.assertRejects(() => {
        throw new Error("no");
      }),
  ],
  ["fail", () => undefined, () => std.fail()],
  ["unimplemented", () => undefined, () => std.unimplemented()],
  ["unreachable", () => undefined, () => std.unreachable()],
  ["assertNever", () => undefined, () => std.assertNever(1 as never)],
  [
    "assertEquals of @std/assert/equals",
    () => fromSubPath(1, 1),
    () => fromSubPath(1, 2),
  ],
];

for (const [name, holds, fails] of cases) {
  Deno.test(`${name} passes what holds and throws at what does not`, async () => {
    await holds();
    let thrown: unknown;
    try {
      await fails();
    } catch (error) {
      thrown = error;
    }
    if (!(thrown instanceof AssertionError)) {
      throw new Error(`${name} did not fail: ${Deno.inspect(thrown)}`);
    }
  });
}

Deno.test("assertThrows and assertRejects return what was thrown", async () => {
  const error = new RangeError("out");
  const thrown = std.assertThrows(() => {
    throw error;
  }, RangeError);
  assert(thrown === error);
  const reason = await std.assertRejects(() => Promise.reject(error));
  assert(reason === error);
});

Deno.test("failure messages name the values, the place and the reason", () => {
  const { message } = std.assertThrows(
    () => std.assertEquals({ a: [1, { b: 2 }] }, { a: [1, { b: 3 }] }, "why"),
    AssertionError,
  );
  for (const part of ["why", "b: 2", "b: 3", "/a/1/b"]) {
    assert(message.includes(part), `"${part}" is not in: ${message}`);
  }
});

const equalPairs: [unknown, unknown, boolean][] = [
  [0, -0, false],
  [{ a: undefined }, {}, false],
  [[1, 2], [1, 2], true],
  [[1, 2], [2, 1], false],
  [[], {}, false],
  [new Float32Array([1, 2]), new Float32Array([1, 2]), true],
  [new Float32Array([1, 2]), new Float32Array([1, 3]), false],
  [new Float32Array([1]), new Float64Array([1]), false],
  [new Float32Array([1]), new Float32Array([1, 0]), false],
  [new Set([[1], [2]]), new Set([[2], [1]]), true],
  [new Set([[1], [2]]), new Set([[1], [3]]), false],
  [new Set([undefined]), new Set([null]), false],
  [new Map([["a", [1]]]), new Map([["a", [1]]]), true],
  [new Map([["a", [1]]]), new Map([["a", [2]]]), false],
  [new Date(1), new Date(1), true],
  [new Date(1), new Date(2), false],
  [/a/g, /a/g, true],
  [/a/g, /a/i, false],
  [new URL("http://a/b"), new URL("http://a/c"), false],
  [new Error("a"), new Error("a"), true],
  [new Error("a"), new Error("b"), false],
  [new Error("a"), new TypeError("a"), false],
  [cyclic(), cyclic(), true],
  [{ [Symbol.for("x")]: 1 }, { [Symbol.for("x")]: 2 }, false],
  [Object.create(null), {}, true],
  ["1", 1, false],
  [null, undefined, false],
];

for (const [i, [a, b, expected]] of equalPairs.entries()) {
  const title = `${Deno.inspect(a)} and ${Deno.inspect(b)}`;
  Deno.test(`equal ${i}: ${title} → ${expected}`, () => {
    assert(std.equal(a, b) === expected, "one way round");
    assert(std.equal(b, a) === expected, "the other way round");
  });
}
