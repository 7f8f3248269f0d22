/**
 * `deno task ablation`: {LoRA, ED-LoRA} × {weight, gradient fusion}.
 *
 * @module
 */
import { sha256 } from "../core/hash.ts";
import { cannot } from "../core/errors.ts";
import { ablation, finishedSeeds } from "../experiments/ablation.ts";
import { ablationSchema } from "../experiments/ablation_json.ts";
import { ablationReport, armLabel } from "../experiments/ablation_table.ts";
import { conceptSheet, pictureRows } from "../experiments/pictures.ts";
import { EMBEDDINGS, TEST_CONCEPTS } from "../experiments/presets.ts";
import { oneDomain } from "../experiments/subjects.ts";
import { type AblationPlan, FUSIONS } from "../experiments/table2.ts";
import { exists, joinPath, readJson, writeJson } from "../io/files.ts";
import type { Lab } from "../lab/lab.ts";
import { nowhere } from "../lab/runner.ts";
import { canonicalJson } from "../lab/store.ts";
import { conceptOf } from "../micro/in_domain.ts";
import { PROMPTS_SHA256 } from "../micro/prompts.ts";
import { type Command, command, runCommand } from "./command.ts";
import { publish } from "./experiment_command.ts";
import {
  inLab,
  LAB_OPTIONS,
  type LabRequest,
  labRequest,
  type Machine,
  RUN_OPTIONS,
  SETTING_OPTIONS,
  settingsOf,
} from "./lab_options.ts";
import {
  flag,
  folder,
  listOf,
  oneOf,
  optionTable,
  parsed,
  whole,
} from "./options.ts";

/** The scales: what the flags `--quick` and `--full` stand for. */
const SCALES = {
  quick: { concepts: 2, prompts: 4, seeds: [0], out: "out/ablation-quick" },
  default: { concepts: 5, prompts: 20, seeds: [0], out: "out/ablation" },
  full: {
    concepts: 12,
    prompts: 20,
    seeds: [0, 1, 2],
    out: "out/ablation-full",
  },
} as const;

const OPTIONS = optionTable({
  quick: {
    type: flag,
    help: "2 concepts, 4 prompts: mechanics only, no conclusion",
  },
  full: { type: flag, help: "12 concepts, 20 prompts, 3 seeds" },
  concepts: {
    type: parsed("LIST", (what, option, found) => {
      if (!/^[-\d.]+$/.test(found)) {
        return found.split(",").map((name) => conceptOf(name).name);
      }
      const most = TEST_CONCEPTS.length;
      const count = whole({ least: 1, most }).read(what, option, found);
      return TEST_CONCEPTS.slice(0, count);
    }),
    otherwise: "5",
    help: "names, or how many of the test concepts",
  },
  ...RUN_OPTIONS,
  method: {
    type: listOf(oneOf(EMBEDDINGS)),
    otherwise: "both",
    help: "lora, edlora",
  },
  fusion: {
    type: listOf(oneOf(FUSIONS)),
    otherwise: "all",
    help: FUSIONS.join(", "),
  },
  ...SETTING_OPTIONS,
  ...LAB_OPTIONS,
  out: { type: folder, otherwise: "out/ablation", help: "where results go" },
  fresh: { type: flag, help: "forget what the cache holds" },
  partial: {
    type: flag,
    help: "run nothing: report on the seeds that are finished",
  },
  dryRun: {
    type: flag,
    help: "run nothing: print prompts' hash, hashes and settings",
  },
});

/** What the command line asks for. */
export interface AblationRequest {
  readonly fresh: boolean;
  /** Reports on what is there. */
  readonly partial: boolean;
  /** Only says what would be run. */
  readonly dryRun: boolean;
  readonly lab: LabRequest;
  readonly plan: AblationPlan;
}

const WHAT = "start the ablation";

/** The version in deno.json; unknown where the package is not on a disk. */
async function libraryVersion(): Promise<string> {
  const file = new URL("../../deno.json", import.meta.url);
  if (file.protocol !== "file:") return "unknown";
  return (await readJson<{ version: string }>(file)).version;
}

/** A run as `runs.json` and `--dry-run` tell of it. */
async function runRecord(lab: Lab, plan: AblationPlan): Promise<unknown> {
  const { settings, prompts, ...rest } = plan;
  const { model, clip } = lab.hashes;
  return {
    started: new Date().toISOString(),
    ...rest,
    prompts: { perConcept: prompts, sha256: PROMPTS_SHA256 },
    hashes: { model, clip, settings: await sha256(canonicalJson(settings)) },
    settings,
    library: await libraryVersion(),
  };
}

/** Notes a run before it starts: what is judged later was fixed before. */
async function noteRun(out: string, record: unknown): Promise<void> {
  const path = joinPath(out, "runs.json");
  const runs = await exists(path) ? await readJson<unknown[]>(path) : [];
  await writeJson(path, [...runs, record]);
}

/** Runs, or reads what is there, and writes the report. */
async function run(
  request: AblationRequest,
  lab: Lab,
  machine: Machine,
): Promise<void> {
  const { backend, workers, describe, progress } = machine;
  const { lab: { out }, plan, partial } = request;
  const { scale, concepts, prompts, seeds, settings } = plan;
  progress.line(
    `${describe}; ${concepts.length} concepts (${
      concepts.join(", ")
    }), ${prompts} prompts, seeds ${seeds.join(", ")}, rank ${settings.rank}`,
  );
  if (scale === "quick") progress.line("mechanics only, no conclusion");
  if (!partial) await noteRun(out, await runRecord(lab, plan));
  const { report: numbers, pictures } = await ablation(lab, plan);
  const data = ablationSchema.parse({
    ...numbers,
    created: new Date().toISOString(),
    machine: {
      backend: backend.name,
      workers,
      processors: navigator.hardwareConcurrency,
      deno: Deno.version.deno,
      library: await libraryVersion(),
      tfjs: "4.22.0",
    },
  });
  const rows = pictureRows(
    pictures,
    (arm) => arm === "base" ? "base, class word" : armLabel(arm),
    scale === "quick" ? 4 : 2,
  );
  const report = ablationReport(data, await conceptSheet(lab, rows));
  await publish(lab, request, machine, { report, data });
}

/** The paper's Table 2. */
export const table2Command: Command<AblationRequest> = command({
  name: "ablation",
  summary: "The paper's Table 2: LoRA and ED-LoRA, weight and gradient fusion",
  usage: "deno task ablation [options]",
  about: `Trains concepts as LoRA and as ED-LoRA, fuses them by weight and by
gradient, draws pictures before and after, scores them, and writes a report. The
default is 5 concepts, 20 prompts each, one seed.`,
  notes: `A run that is stopped continues where it was. Every run is noted in
runs.json of its output folder before it starts. Concepts that the base model can
draw itself (niko, finn, ulla, zara) are asked for by name and never averaged with
the others.`,
  options: OPTIONS,
  request({ quick, full, fresh, partial, dryRun, ...values }) {
    if (quick && full) throw cannot(WHAT, "--quick or --full", "both");
    // What runs nothing must not cost what is there.
    if (fresh && partial) throw cannot(WHAT, "--fresh or --partial", "both");
    if (partial && dryRun) {
      throw cannot(WHAT, "--partial or --dry-run", "both");
    }
    if (fresh && dryRun) throw cannot(WHAT, "--fresh or --dry-run", "both");
    if (values.queue !== undefined) {
      for (const [name, on] of Object.entries({ partial, dryRun, fresh })) {
        if (!on) continue;
        const option = name === "dryRun" ? "dry-run" : name;
        throw cannot(WHAT, `--${option} or --queue`, "both");
      }
    }
    const { concepts, n, seeds, method, fusion, model } = values;
    const scale = quick ? "quick" : full ? "full" : "default";
    const defaults = SCALES[scale];
    const settings = { ...SETTING_OPTIONS };
    const changed = [concepts, n, seeds, method, fusion, model].concat(
      Object.keys(settings).map((name) =>
        values[name as keyof typeof settings]
      ),
    ).some((value) => value !== undefined);
    return {
      ...{ fresh, partial, dryRun },
      lab: labRequest(values, values.out ?? defaults.out),
      plan: {
        concepts: concepts ?? TEST_CONCEPTS.slice(0, defaults.concepts),
        prompts: n ?? defaults.prompts,
        seeds: seeds ?? defaults.seeds,
        embeddings: method ?? EMBEDDINGS,
        fusions: fusion ?? FUSIONS,
        settings: settingsOf(values),
        scale: quick ? "quick" : changed ? "custom" : scale,
      },
    };
  },
  async run(request) {
    const { lab: { store }, plan, partial, dryRun, fresh } = request;
    oneDomain(plan.concepts);
    await inLab(WHAT, request.lab, async (lab, machine) => {
      if (dryRun) {
        const record = await runRecord(lab, plan);
        return console.log(JSON.stringify(record, null, 2));
      }
      if (fresh) {
        await Deno.remove(store, { recursive: true }).catch((error) => {
          if (!(error instanceof Deno.errors.NotFound)) throw error;
        });
      }
      if (!partial) return await run(request, lab, machine);
      const seeds = await finishedSeeds(lab, plan);
      if (seeds.length === 0) {
        throw cannot("report on a part", "at least one finished seed", "none");
      }
      const part = seeds.length === plan.seeds.length
        ? plan
        : { ...plan, seeds, planned: plan.seeds };
      await run({ ...request, plan: part }, lab, machine);
    }, partial || dryRun ? { runner: nowhere } : {});
  },
});

if (import.meta.main) Deno.exit(await runCommand(table2Command, Deno.args));
