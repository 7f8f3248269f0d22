/**
 * What an experiment is: options with defaults, and a function from a lab and a
 * plan to numbers and a report. The command line, the checks of a plan and the
 * files of a report are the same for all of them.
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

/** What is run: a value per option, and the settings of the preset. */
export type Plan<T extends OptionTable> = Values<T> & {
  /** Which defaults it has; a quick run allows no conclusion. */
  readonly scale: Scale;
  /** How concepts are trained, fused and drawn. */
  readonly settings: ExperimentPreset;
};

/** What an experiment gives. */
export interface Outcome<D extends object = object> {
  /** The numbers, as they are stored. */
  readonly data: D;
  /** Tables, figures and pictures of them. */
  readonly report: Report;
  /** A line for the terminal. */
  readonly note?: string;
}

/** Other defaults behind a flag. */
export interface Scaled<T extends OptionTable> {
  /** What `--help` says of the flag. */
  readonly help: string;
  /** The defaults that are others. */
  readonly plan: Partial<Values<T>>;
}

/** An experiment of the paper, or beyond it. */
export interface Experiment<
  T extends OptionTable = OptionTable,
  D extends object = object,
> {
  /** Its name; the files of its report have it, too. */
  readonly name: string;
  /** Tables and figures of the paper that it makes: other names of its command. */
  readonly also?: readonly string[];
  /** What it shows, in a line. */
  readonly summary: string;
  /** What it does, in a paragraph. */
  readonly about: string;
  /** What stands behind the options in help. */
  readonly notes?: string;
  /** The fields of its plan, with defaults. */
  readonly options: T;
  /** Settings that are no options of it. */
  readonly without?: readonly SettingName[];
  /** Flags that stand for other defaults. */
  readonly scales?: {
    readonly quick?: Scaled<T>;
    readonly full?: Scaled<T>;
  };
  /**
   * Checks options against each other, and files that they name.
   *
   * @param plan The plan.
   * @throws If they do not go together, before work starts.
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
  /** Whether a plan only reads what the store has. */
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
 * @param parts What it is.
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
 * A whole plan: what is given, else the defaults.
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
  // A given value comes before the flag's default, and that before the table's.
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
