import { assertEquals } from "@std/assert";
import { complaints, isForeign, ownTypes } from "./doc_lint.ts";

const OUTPUT = `error[missing-jsdoc]: exported symbol is missing JSDoc
   --> /x/src/a.ts:9:1
    |

error[private-type-ref]: public type 'f' references private type 'Model'
   --> /x/src/a.ts:10:1
    |

error[private-type-ref]: public type 'f' references private type 'Tensor4D'
   --> /x/src/a.ts:10:1
    |

error: Found 3 documentation lint errors.
`;

Deno.test("complaints about other packages' types are told from ours", async () => {
  const found = complaints(OUTPUT);
  assertEquals(found.map(({ kind, type }) => [kind, type]), [
    ["missing-jsdoc", undefined],
    ["private-type-ref", "Model"],
    ["private-type-ref", "Tensor4D"],
  ]);
  const own = await ownTypes();
  assertEquals(found.map((c) => isForeign(c, own)), [false, false, true]);
});
