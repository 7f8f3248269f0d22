/**
 * An experiment has options with defaults, and a function that takes a lab and
 * a plan and returns numbers and a report. All experiments share the command
 * line, the checks of a plan and the files of a report.
 *
 * @module
 */
import {
  checkValues,
  type OptionTable,
  takesValue,
  type Values,
} from "../core/options.ts";
import type { Lab } from "../lab/lab.ts";
import type { Report } from "../report/document.ts";
import {
  type ExperimentPreset,
  SETTING_OPTIONS,
  type SettingName,
  settingsOf,
  settingValues,
} from "./presets.ts";

/** Which defaults a plan has; `custom` if an option changed them. */
export type Scale = "quick" | "default" | "full" | "custom";

/** The plan of a run: a value per option, and the settings of the preset. */
export type Plan<T extends OptionTable> = Values<T> & {
  /** Which defaults it has; a quick run allows no conclusion. */
  readonly scale: Scale;
  /** How concepts are trained, fused and drawn. */
  readonly settings: ExperimentPreset;
};

/** The result of an experiment. */
export interface Outcome<D extends object = object> {
  /** The numbers, as they are stored. */
  readonly data: D;
  /** Tables, figures and pictures of them. */
  readonly report: Report;
  /** A line for the terminal. */
  readonly note?: string;
}

/** Other defaults, selected by a flag. */
export interface Scaled<T extends OptionTable> {
  /** What `--help` says of the flag. */
  readonly help: string;
  /** The defaults that differ. */
  readonly plan: Partial<Values<T>>;
}

/** An experiment of the paper, or beyond it. */
export interface Experiment<
  T extends OptionTable = OptionTable,
  D extends object = object,
> {
  /** Its name; the files of its report have it, too. */
  readonly name: string;
  /**
   * Aliases of its command: the paper's tables and figures that it reproduces.
   */
  readonly also?: readonly string[];
  /** What it shows, in a line. */
  readonly summary: string;
  /** What it does, in a paragraph. */
  readonly about: string;
  /** Text after the options in help. */
  readonly notes?: string;
  /** The fields of its plan, with defaults. */
  readonly options: T;
  /** Settings of the preset that are not options of this experiment. */
  readonly without?: readonly SettingName[];
  /** Flags that select other defaults. */
  readonly scales?: {
    readonly quick?: Scaled<T>;
    readonly full?: Scaled<T>;
  };
  /**
   * Checks that options are consistent and that files exist.
   *
   * @param plan The plan.
   * @throws Before work starts, if they are not.
   */
  check?(plan: Plan<T>): void | Promise<void>;
  /**
   * Condition networks that it draws with.
   *
   * @param plan The plan.
   * @param model Folder of the base model.
   * @returns Folders by name.
   */
  networks?(
    plan: Plan<T>,
    model: string,
  ): Promise<Readonly<Record<string, string>>>;
  /** Whether a plan only reads results of the store. */
  stored?(plan: Plan<T>): boolean;
  /**
   * Runs it.
   *
   * @param lab The lab.
   * @param plan What is run.
   * @throws Before work starts, if a value is wrong.
   */
  run(lab: Lab, plan: Plan<T>): Promise<Outcome<D>>;
}

/**
 * Makes an experiment whose plans are checked before they are run.
 *
 * @param parts Its definition.
 */
export function experiment<const T extends OptionTable, D extends object>(
  parts: Experiment<T, D>,
): Experiment<T, D> {
  const { name, options, run } = parts;
  const check = async (plan: Plan<T>) => {
    const what = `run the ${name} experiment`;
    checkValues(what, options, plan);
    checkValues(what, SETTING_OPTIONS, settingValues(plan.settings));
    await parts.check?.(plan);
  };
  return {
    ...parts,
    check,
    async run(lab, plan) {
      await check(plan);
      return await run(lab, plan);
    },
  };
}

/**
 * A complete plan: the given values, else the defaults.
 *
 * @param experiment The experiment.
 * @param given Values of the plan.
 *
 * @example
 * ```ts ignore
 * const plan = planOf(fig5, { concepts: ["kuro", "momo"], counts: [2] });
 * const { data, report } = await fig5.run(lab, plan);
 * ```
 */
export function planOf<T extends OptionTable>(
  { options, scales }: Pick<Experiment<T>, "options" | "scales">,
  given: Partial<Plan<T>> = {},
): Plan<T> {
  const { scale = "default" } = given;
  const { settings = settingsOf({}, scale === "quick") } = given;
  const flag = scale === "quick" || scale === "full" ? scales?.[scale] : null;
  // Precedence: a given value, the flag's default, the table's default.
  const [own, scaled] = [given, flag?.plan ?? {}] as readonly Readonly<
    Record<string, unknown>
  >[];
  const values = Object.entries(options).map(([field, option]) => [
    field,
    own[field] ?? scaled[field] ?? option.default ??
      (takesValue(option) ? undefined : false),
  ]);
  return { ...Object.fromEntries(values), scale, settings } as Plan<T>;
}
