/**
 * `deno doc --lint` on the public modules, but for one complaint that nobody
 * here can help: a public function that takes or returns another package's type
 * (a tensor of tfjs) counts as one with a private type.
 *
 * @module
 */
import { listFiles, root, runDeno } from "./repository.ts";

/** One complaint of the linter. */
export interface Complaint {
  /** Its kind, such as `missing-jsdoc`. */
  kind: string;
  /** The whole text. */
  text: string;
  /** The type that is not exported, where that is the complaint. */
  type?: string;
}

/** The complaints in what `deno doc --lint` wrote, colours left out. */
export function complaints(output: string): Complaint[] {
  return output.split(/^(?=error\[)/m).filter((t) => t.startsWith("error["))
    .map((text) => {
      const type = /references private type '(\w+)'/.exec(text)?.[1];
      return {
        kind: /^error\[([\w-]+)\]/.exec(text)![1],
        text: text.split(/\n\n/)[0],
        ...(type === undefined ? {} : { type }),
      };
    });
}

/**
 * Whether a complaint is about a type of another package.
 *
 * @param complaint The complaint.
 * @param own Names of all types that src declares.
 */
export function isForeign(
  { kind, type }: Complaint,
  own: ReadonlySet<string>,
): boolean {
  return kind === "private-type-ref" && type !== undefined && !own.has(type);
}

/** Names of the types that modules of src declare. */
export async function ownTypes(): Promise<Set<string>> {
  const names = new Set<string>();
  for (const file of await listFiles("src", ".ts")) {
    const text = await Deno.readTextFile(`${root}/${file}`);
    const found = text.matchAll(
      /^\s*(?:export )?(?:declare )?(?:abstract )?(?:interface|type|class|enum) (\w+)/gm,
    );
    for (const [, name] of found) names.add(name);
    // `typeof schema` in a type counts as well.
    const values = text.matchAll(/^(?:export )?(?:const|function) (\w+)/gm);
    for (const [, name] of values) names.add(name);
  }
  return names;
}

if (import.meta.main) {
  const { code, stdout, stderr } = await runDeno([
    "doc",
    "--lint",
    ...Deno.args,
  ]);
  const output = stdout + stderr;
  const found = complaints(output);
  const own = await ownTypes();
  const ours = found.filter((complaint) => !isForeign(complaint, own));
  for (const { text } of ours) console.error(`${text}\n`);
  // A failure without a complaint is no pass.
  const broken = code !== 0 && found.length === 0;
  if (broken) console.error(output);
  console.log(
    `${ours.length} complaints, ${
      found.length - ours.length
    } about types of other packages`,
  );
  Deno.exitCode = ours.length > 0 || broken ? 1 : 0;
}
