/**
 * `deno task studio:concepts`: trains the concepts that the studio comes with,
 * with the product's own `train`, from nothing. To be run again when the weights
 * of the embedded model change.
 *
 * @module
 */
import { IDENTITIES } from "../../src/micro/world.ts";
import { helped, onlyKnown } from "./help.ts";
import { denoInTerminal, root } from "./repository.ts";

const HELP = `
deno task studio:concepts

Trains four of the embedded world's characters (ED-LoRA, preset ablation) and
writes them to examples/studio/concepts, as half floats. Twenty minutes on two
cores.

  --help   this text
`;

/** Who comes with the studio. */
const NAMES = ["raja", "momo", "pogo", "dash"] as const;

/** The settings of the paper's experiments, with adapters of a smaller rank. */
const SETTINGS = [
  ...["--preset", "ablation", "--steps", "300", "--rank", "2"],
  ...["--lr-embedding", "1e-3", "--lr-text", "3e-4", "--lr-unet", "3e-3"],
  ...["--dtype", "F16", "--fresh"],
];

const folder = "examples/studio/concepts";

async function run(...args: string[]): Promise<void> {
  const code = await denoInTerminal(["run", "-q", "-P=local", ...args]);
  if (code !== 0) throw new Error(`${args.join(" ")} ended with code ${code}`);
}

if (import.meta.main && !helped(HELP)) {
  onlyKnown("train the studio's concepts");
  for (const name of NAMES) {
    const { class: word } = IDENTITIES.find((one) => one.name === name)!;
    const out = `out/studio/${name}`;
    await run("examples/concept_pictures.ts", name, `${out}/pictures`);
    await run(
      ...["src/cli/main.ts", "train", "--name", name, "--class", word],
      ...["--images", `${out}/pictures`, ...SETTINGS],
      ...["--out", `${out}/${name}.safetensors`],
    );
    const file = `${folder}/${name}.safetensors`;
    await Deno.copyFile(
      `${root}/${out}/${name}.safetensors`,
      `${root}/${file}`,
    );
    console.log(`${file}: ${(await Deno.stat(`${root}/${file}`)).size} bytes`);
  }
}
