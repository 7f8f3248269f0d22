/**
 * `deno task experiment`: the paper's experiments, all run by one command. An
 * experiment's command line comes from its options, those of the preset and
 * those of the lab.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { sha256 } from "../core/hash.ts";
import { type Comparison, comparisonTable } from "../evaluation/compare.ts";
import { testEvaluator } from "../experiments/evaluator.ts";
import {
  type Experiment,
  type Plan,
  planOf,
  type Scale,
} from "../experiments/experiment.ts";
import {
  SETTING_OPTIONS,
  settingsOf,
  type SettingValues,
} from "../experiments/presets.ts";
import { EXPERIMENTS } from "../experiments/registry.ts";
import {
  exists,
  joinPath,
  readJson,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import type { Lab } from "../lab/lab.ts";
import { nowhere } from "../lab/runner.ts";
import { canonicalJson, emptyStore } from "../lab/store.ts";
import { PROMPTS_SHA256 } from "../micro/prompts.ts";
import {
  contentsHtml,
  type ReportEntry,
  verdictCounts,
} from "../report/contents.ts";
import { reportText, writeReport } from "../report/document.ts";
import { terminalColumns } from "./progress.ts";
import { duration } from "../report/format.ts";
import { factsOf, type Table } from "../report/table.ts";
import { type Command, command, runCommand, runProgram } from "./command.ts";
import { evaluators } from "./evaluators.ts";
import { frames } from "./frames.ts";
import {
  inLab,
  LAB_OPTIONS,
  type LabRequest,
  labRequest,
  type Machine,
} from "./lab_options.ts";
import { listable } from "./models.ts";
import {
  flag,
  folder,
  listOf,
  neededOptions,
  oneOf,
  optionName,
  type OptionTable,
  optionTable,
  readTable,
  type Values,
} from "./options.ts";
import { VERSION } from "./version.ts";

/** What an experiment's command line asks for. */
export interface ExperimentRequest {
  /** Where models, results and work are. */
  readonly lab: LabRequest;
  /** What is run. */
  readonly plan: Plan<OptionTable>;
  /** Whether the store is emptied first. */
  readonly fresh: boolean;
  /** Whether it only says what would be run. */
  readonly dryRun: boolean;
}

/** Options of every experiment besides its own and the settings. */
const COMMON = optionTable({
  ...LAB_OPTIONS,
  fresh: { type: flag, help: "empty the cache first" },
  dryRun: {
    type: flag,
    help: "run nothing; print hashes (also the prompts') and settings",
  },
});

/** The option table of an experiment. */
function optionsOf(
  { name, options, scales, without = [] }: Experiment,
): OptionTable {
  const settings = Object.entries(SETTING_OPTIONS).filter(([field]) =>
    !without.some((one) => one === field)
  );
  const flags = Object.entries(scales ?? {}).map(([scale, { help }]) =>
    [scale, { type: flag, help }] as const
  );
  return {
    ...Object.fromEntries([...flags, ...Object.entries(options), ...settings]),
    ...COMMON,
    out: {
      type: folder,
      otherwise: [
        `out/${name}`,
        ...flags.map(([flag]) => `with --${flag} out/${name}-${flag}`),
      ].join(", "),
      help: `folder for ${name}.json, .md, .html and pictures`,
    },
  };
}

/** Refuses options that cannot both be there. */
function refuseBoth(name: string, values: Readonly<Record<string, unknown>>) {
  const among = (fields: readonly string[]) => {
    const [one, other] = fields.filter((field) => values[field])
      .map((field) => optionName(field));
    if (other) throw cannot(`run ${name}`, `${one} or ${other}`, "both");
  };
  among(["quick", "full"]);
  // What runs nothing must not cost what is there, and needs no other machine.
  among(["fresh", "partial", "dryRun", "queue"]);
}

/** What a command line gives; nothing stands for a default. */
type Given =
  & Partial<Values<typeof COMMON>>
  & SettingValues
  & { readonly out?: string }
  & Readonly<Record<string, unknown>>;

/** Makes the request: what is given, else the plan's defaults. */
function requestOf(experiment: Experiment, values: Given): ExperimentRequest {
  const { name, options } = experiment;
  refuseBoth(name, values);
  const { fresh = false, dryRun = false, quick, full } = values;
  const own = Object.keys(options), shared = Object.keys(SETTING_OPTIONS);
  const isChanged = [...own, ...shared, "model"].some((field) =>
    values[field] !== undefined && values[field] !== false
  );
  const base: Scale = quick ? "quick" : full ? "full" : "default";
  const given = Object.fromEntries(
    own.filter((field) => values[field] !== false)
      .map((field) => [field, values[field]]),
  );
  const settings = settingsOf(
    Object.fromEntries(
      // What the experiment has a list of is no setting.
      shared.filter((field) => !own.includes(field))
        .map((field) => [field, values[field]]),
    ),
    base === "quick",
  );
  const plan = planOf(experiment, { ...given, scale: base, settings });
  const out = base === "default" ? name : `${name}-${base}`;
  return {
    ...{ fresh, dryRun },
    lab: labRequest(values, values.out ?? joinPath("out", out)),
    // A quick run stays one that allows no conclusion.
    plan: isChanged && base !== "quick" ? { ...plan, scale: "custom" } : plan,
  };
}

/**
 * An experiment as a command.
 *
 * @param experiment The experiment.
 */
export function experimentCommand(
  experiment: Experiment,
): Command<ExperimentRequest> {
  const { name, summary, about, notes } = experiment;
  const options = optionsOf(experiment);
  const task = name === "ablation" ? name : `experiment ${name}`;
  return {
    ...command({
      ...{ name, summary, about, notes, options },
      usage: `deno task ${task} ${neededOptions(options)}[options]`,
      request: (values) => requestOf(experiment, values as Given),
      run: async (request) => void await run(experiment, request),
    }),
    parse(args) {
      // What is not given is told from what is given as it is by default.
      const bare = Object.entries(options).map((
        [field, option],
      ) => [field, { ...option, default: undefined }]);
      const what = `run the ${name} experiment`;
      const values = readTable(what, args, Object.fromEntries(bare));
      return values && requestOf(experiment, values as Given);
    },
    check: ({ plan }) => experiment.check?.(plan),
  };
}

/** A run as `runs.json` and `--dry-run` tell of it. */
async function runRecord(
  name: string,
  lab: Lab,
  plan: Plan<OptionTable>,
): Promise<unknown> {
  const { settings, ...rest } = plan;
  return {
    ...{ experiment: name, started: new Date().toISOString() },
    ...rest,
    promptsSha256: PROMPTS_SHA256,
    hashes: { ...lab.hashes, settings: await sha256(canonicalJson(settings)) },
    settings,
    library: VERSION,
  };
}

/** Notes a run before it starts: what is judged later was fixed before. */
async function noteRun(out: string, record: unknown): Promise<void> {
  const path = joinPath(out, "runs.json");
  const runs = await exists(path) ? await readJson<unknown[]>(path) : [];
  await writeJson(path, [...runs, record]);
}

/** Runs an experiment; gives its numbers, if it is no dry run. */
async function run(
  experiment: Experiment,
  { lab: asked, plan, fresh, dryRun }: ExperimentRequest,
): Promise<object | undefined> {
  const { name } = experiment;
  const [model, clip] = [
    await listable(asked.model),
    await listable(asked.clip),
  ];
  const request = { ...asked, model, clip };
  const what = `run the ${name} experiment`;
  const networks = await experiment.networks?.(plan, request.model);
  await experiment.check?.(plan);
  const stored = dryRun || experiment.stored?.(plan);
  return await inLab(what, request, async (lab, machine) => {
    const record = await runRecord(name, lab, plan);
    if (dryRun) return void console.log(JSON.stringify(record, null, 2));
    if (fresh) await emptyStore(request.store);
    machine.progress.line(machine.describe);
    if (plan.scale === "quick") {
      machine.progress.line("smoke test, no conclusion");
    }
    if (!stored) await noteRun(request.out, record);
    return await publish(experiment, lab, request.out, plan, machine);
  }, { networks, ...(stored ? { runner: nowhere } : {}) });
}

/** Where a report was made, as a table. */
function machineTable(lab: Lab, { describe }: Machine): Table {
  const { model, clip } = lab.hashes;
  const time = Object.values(lab.seconds).reduce((sum, one) => sum + one, 0);
  return factsOf("machine and models", [
    ["machine", describe],
    ["time of this run, without cached work", duration(time)],
    ["base model, SHA-256", model],
    ["evaluation CLIP, SHA-256", clip],
  ]);
}

/**
 * Runs an experiment, writes its report, says where it is and gives its numbers.
 * The first line of a report says whether the evaluator passes its test.
 */
async function publish(
  experiment: Experiment,
  lab: Lab,
  out: string,
  plan: Plan<OptionTable>,
  machine: Machine,
): Promise<object> {
  const { name } = experiment;
  const { data, report, note } = await experiment.run(lab, plan);
  const evaluator = await testEvaluator(lab, plan.settings.sampling);
  const { backend, workers, progress } = machine;
  const whole = {
    ...report,
    lead: [evaluator.line, ...report.lead],
    parts: [
      ...report.parts,
      { type: "table", table: machineTable(lab, machine) } as const,
      { type: "data", title: "Settings", value: plan.settings } as const,
    ],
  };
  await writeReport(out, whole, {
    ...plan,
    created: new Date().toISOString(),
    hashes: lab.hashes,
    ...data,
    machine: {
      ...{ backend: backend.name, workers },
      processors: navigator.hardwareConcurrency,
      deno: Deno.version.deno,
      library: VERSION,
      tfjs: tf.version_core,
    },
    timings: lab.seconds,
    evaluator,
  });
  progress.finish();
  console.log(`\n${reportText(whole, terminalColumns())}`);
  if (note) console.log(note);
  console.log(`${joinPath(out, `${name}.html`)}  (also .json, .md, .png)`);
  return data;
}

/** Experiments that run without being told more. */
const UNAIDED = EXPERIMENTS.filter(({ options }) =>
  Object.values(options).every(({ needed }) => !needed)
);

const ALL_OPTIONS = optionTable({
  quick: {
    type: flag,
    help: "every experiment's quick plan: smoke test, no conclusion",
  },
  only: {
    type: listOf(oneOf(UNAIDED.map(({ name }) => name))),
    otherwise: "all of them",
    help: "which experiments",
  },
  ...SETTING_OPTIONS,
  ...LAB_OPTIONS,
  out: {
    type: folder,
    otherwise: "out/all, out/all-quick with --quick",
    help: "folder for index.html and one folder per experiment",
  },
});

/**
 * One value of a setting, for an experiment that has a list of them.
 *
 * @param experiment The experiment.
 * @param values What `all` was given.
 */
export function listed(
  { options }: Pick<Experiment, "options">,
  values: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(values).map(([field, value]) => {
      const isList = field in SETTING_OPTIONS && field in options;
      return [field, isList && value !== undefined ? [value] : value];
    }),
  );
}

/** `deno task experiment all`. */
const all = command({
  name: "all",
  what: "run all experiments",
  summary: "Every experiment, and a page that lists them",
  usage: "deno task experiment all [options]",
  about: `Runs every experiment, one after the other, with one cache, and writes
index.html, which lists their reports and the verdicts on their claims. A
stopped run continues; an experiment that fails does not stop the others.`,
  options: ALL_OPTIONS,
  request: (values) => values,
  run: runAll,
});

async function runAll(
  { only, out: given, ...values }: Values<typeof ALL_OPTIONS>,
): Promise<void> {
  const quick = values.quick ? "-quick" : "";
  const out = given ?? joinPath("out", `all${quick}`);
  const cache = values.queue ? values.cache : values.cache ??
    joinPath(out, "cache");
  const list = UNAIDED.filter(({ name }) => !only || only.includes(name));
  const requestFor = (one: Experiment) =>
    requestOf(
      one,
      listed(one, {
        ...values,
        cache,
        out: joinPath(out, one.name),
      }) as Given,
    );
  const entries = list.map((one): ReportEntry => {
    const { name, summary } = one;
    const { seeds = [0] } = requestFor(one).plan as {
      readonly seeds?: readonly number[];
    };
    return {
      ...{ name, summary, seeds: seeds.join(", ") },
      ...{ verdict: "", time: "not yet" },
    };
  });
  const claims: (Comparison & { readonly report: string })[] = [];
  const begun = performance.now();
  const failed: string[] = [];
  for (const [i, one] of list.entries()) {
    const { name } = one;
    console.log(`\n${name} (${i + 1} of ${list.length})`);
    const before = performance.now();
    let verdict: string;
    try {
      const data = await run(one, requestFor(one));
      const { comparisons = [] } = data as {
        comparisons?: readonly Comparison[];
      };
      verdict = verdictCounts(comparisons);
      claims.push(...comparisons.map((one) => ({ ...one, report: name })));
    } catch (error) {
      failed.push(name);
      verdict = `failed: ${(error as Error).message}`;
      console.error(verdict);
    }
    const seconds = (performance.now() - before) / 1000;
    entries[i] = {
      ...entries[i],
      verdict,
      time: duration(seconds),
      ...(failed.includes(name) ? {} : { href: `${name}/${name}.html` }),
    };
    const spent = (performance.now() - begun) / 1000;
    const left = duration(spent / (i + 1) * (list.length - i - 1));
    const lead = [
      quick ? "Quick plans: smoke test, no conclusion." : "Default plans.",
      i + 1 < list.length
        ? `${i + 1} of ${list.length} done, about ${left} left.`
        : `Done in ${duration(spent)}.`,
      `Mix-of-Show ${VERSION}, Deno ${Deno.version.deno}; model, settings and ` +
      "versions are at the end of each report, the paper's numbers in its " +
      "tables.",
    ];
    const index = joinPath(out, "index.html");
    await writeAtomic(
      index,
      await contentsHtml(
        "Mix-of-Show: every experiment",
        lead,
        entries,
        claims.length === 0
          ? undefined
          : comparisonTable({ comparisons: claims }, undefined, [
            ["report", ({ report }) => report],
            ["whose", ({ paper }) => paper ? "the paper's" : "ours"],
          ]),
      ),
    );
    console.log(`${lead[1]} ${index}`);
  }
  if (failed.length === 0) return;
  throw cannot("run all experiments", "all to end", failed.join(", "));
}

/** Every experiment's command; frames and evaluators need no lab's work. */
export const EXPERIMENT_COMMANDS: readonly Command<unknown>[] = [
  ...EXPERIMENTS.map(experimentCommand),
  all,
  frames,
  evaluators,
];

/** Names of experiments by other names: the paper's tables and figures. */
const ALSO: ReadonlyMap<string, string> = new Map(
  EXPERIMENTS.flatMap(({ name, also = [] }) =>
    also.map((other) => [other, name] as const)
  ),
);

/**
 * Runs an experiment.
 *
 * @param args Arguments: its name, then its options.
 * @returns The exit code: 0, 1 if it failed, 2 for bad arguments.
 */
export function main(
  [name, ...rest]: readonly string[],
): Promise<number> {
  const others = [...ALSO].map(([other, own]) => `${other} (${own})`);
  return runProgram({
    title: "deno task experiment NAME [options]",
    notes: `Names in the paper work, too: ${others.join(", ")}.
NAME --help lists the options of an experiment.`,
    task: "run an experiment",
    commands: EXPERIMENT_COMMANDS,
    run: runCommand,
  }, name === undefined ? [] : [ALSO.get(name) ?? name, ...rest]);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
