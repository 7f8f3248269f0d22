/**
 * `deno task studio`: builds the studio and serves it on this computer.
 *
 * @module
 */
import { served } from "../platform/served.ts";
import { build } from "./build.ts";
import { helped, onlyKnown } from "./help.ts";
import { root } from "./repository.ts";

const HELP = `
deno task studio [--no-build]

Builds dist/ and serves its studio, a page to draw several concepts into one
picture, at http://127.0.0.1:8321/studio/ until Ctrl-C. dist/ is static: any
other server of files will do.

  --no-build   dist/ is there
  --help       this text
`;

/** The studio's own: an address is remembered. */
const PORT = 8321;

if (import.meta.main && !helped(HELP)) {
  onlyKnown("serve the studio", "--no-build");
  if (!Deno.args.includes("--no-build")) await build();
  await using server = served(`${root}/dist`, { port: PORT });
  console.log(`${server.url}/studio/`);
  await new Promise(() => {});
}
