type BooleanType = boolean | string | undefined;
type StringType = string | undefined;
type Names = string | undefined;
type Defaults = Record<string, unknown> | undefined;
type AliasTable = Record<string, string | readonly string[]> | undefined;

/** The options of {@linkcode parseArgs}. */
export interface ParseOptions<
  TBooleans extends BooleanType = BooleanType,
  TStrings extends StringType = StringType,
  TCollectable extends Names = Names,
  TNegatable extends Names = Names,
  TDefault extends Defaults = Defaults,
  TAliases extends AliasTable = AliasTable,
  TDoubleDash extends boolean | undefined = boolean | undefined,
> {
  /**
   * Put what follows `--` into the result's `"--"` and not into `_`.
   *
   * @default {false}
   */
  "--"?: TDoubleDash;
  /** Other names of an option. */
  alias?: TAliases;
  /** Names that are flags; `true` makes every `--name` without `=` one. */
  boolean?: TBooleans | ReadonlyArray<Extract<TBooleans, string>>;
  /** Values of the options that are not given. */
  default?: TDefault;
  /**
   * Leave everything after the first positional argument unparsed.
   *
   * @default {false}
   */
  stopEarly?: boolean;
  /** Names whose value is never read as a number. */
  string?: TStrings | ReadonlyArray<Extract<TStrings, string>>;
  /** Names that may be repeated; their values are gathered in an array. */
  collect?: TCollectable | ReadonlyArray<Extract<TCollectable, string>>;
  /** Names that `--no-name` sets to `false`. */
  negatable?: TNegatable | ReadonlyArray<Extract<TNegatable, string>>;
  /**
   * Called for every argument that no other option names: with the argument
   * alone for a positional one, with key and value for an option. Returning
   * `false` leaves the argument out of the result.
   */
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

// --- The result's type -----------------------------------------------------

type Text<T> = Extract<T, string>;

/** The value of one name, before defaults. */
type Plain<K, B, S> = K extends Text<S> ? string
  : K extends Text<B> ? boolean
  : unknown;
type Collected<K, B, S, C> = K extends Text<C> ? Plain<K, B, S>[]
  : Plain<K, B, S>;
type Negated<K, B, S, C, N> = K extends Text<N> ? Collected<K, B, S, C> | false
  : Collected<K, B, S, C>;
type Value<K, B, S, C, N, D> = K extends keyof D
  ? D[K] | NonNullable<Negated<K, B, S, C, N>>
  : Negated<K, B, S, C, N>;

/** `"a.b"` becomes `{ a: { b } }`; `Sure` says whether the key is always set. */
type Nested<K, V, Sure> = K extends `${infer Head}.${infer Rest}`
  ? Entry<Head, Nested<Rest, V, Sure>, Sure>
  : Entry<K & string, V, Sure>;
type Entry<K extends string, V, Sure> = Sure extends true ? { [k in K]: V }
  : { [k in K]?: V };

type Intersection<U> = (U extends unknown ? (x: U) => void : never) extends
  (x: infer I) => void ? I
  : never;

type AllNames<B, S, C, D> =
  | Text<B>
  | Text<S>
  | Text<C>
  | (D extends undefined ? never : Extract<keyof D, string>);

type Spelled<K, A> = K extends keyof A ? A[K] extends string ? K | A[K]
  : A[K] extends readonly string[] ? K | A[K][number]
  : K
  : K;

type Values<
  B extends BooleanType,
  S extends StringType,
  C extends Names,
  N extends Names,
  D extends Defaults,
  A extends AliasTable,
> = [Text<B> | Text<S> | Text<C>] extends [never]
  // deno-lint-ignore no-explicit-any
  ? Record<string, any>
  :
    & Record<string, unknown>
    & Intersection<
      {
        [K in AllNames<B, S, C, D>]: Nested<
          Spelled<K, A>,
          Value<K, B, S, C, N, D>,
          K extends Text<B> | Text<C> | keyof D ? true : false
        >;
      }[AllNames<B, S, C, D>]
    >;

/** What {@linkcode parseArgs} returns. */
export type Args<
  // deno-lint-ignore no-explicit-any
  TArgs extends Record<string, unknown> = Record<string, any>,
  TDoubleDash extends boolean | undefined = undefined,
> =
  & TArgs
  & {
    /** The arguments that belong to no option. */
    _: Array<string | number>;
  }
  & (boolean extends TDoubleDash ? { "--"?: string[] }
    : true extends TDoubleDash ? { "--": string[] }
    : unknown);

// --- The parser ------------------------------------------------------------

const NUMBER = /^(?:0x[0-9a-f]+|[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)$/i;

/**
 * Reads command-line arguments into an object: `--name value`, `--name=value`,
 * `--flag`, `--no-flag`, `-abc`, `-n5`, `--a.b value`, positional arguments in
 * `_`. Values that look like numbers become numbers unless the name is in
 * `string`; flags are `false` and collected names `[]` when not given.
 *
 * @example
 * ```ts ignore
 * parseArgs(["--n", "4", "--quick", "out"], {
 *   string: ["n"],
 *   boolean: ["quick"],
 * }); // { _: ["out"], n: "4", quick: true }
 * ```
 */
export function parseArgs<
  TDoubleDash extends boolean | undefined = undefined,
  TBooleans extends BooleanType = undefined,
  TStrings extends StringType = undefined,
  TCollectable extends Names = undefined,
  TNegatable extends Names = undefined,
  TDefaults extends Defaults = undefined,
  const TAliases extends AliasTable = undefined,
>(
  args: string[],
  options: ParseOptions<
    TBooleans,
    TStrings,
    TCollectable,
    TNegatable,
    TDefaults,
    TAliases,
    TDoubleDash
  > = {},
): Args<
  Values<TBooleans, TStrings, TCollectable, TNegatable, TDefaults, TAliases>,
  TDoubleDash
> {
  const twins = aliasTable(options.alias);
  const flags = nameSet(options.boolean, twins);
  const strings = nameSet(options.string, twins);
  const collected = nameSet(options.collect, twins);
  const negatable = nameSet(options.negatable, twins);
  const allFlags = options.boolean === true;
  const result: Tree = {};
  const positional: (string | number)[] = [];

  function put(key: string, value: string | boolean, arg: string, many = true) {
    const known = flags.has(key) || strings.has(key) || twins.has(key) ||
      (allFlags && arg.startsWith("--") && !arg.includes("="));
    if (!known && options.unknown?.(arg, key, value) === false) return;
    const stored = typeof value === "string" && !strings.has(key)
      ? numeric(value)
      : value;
    for (const name of [key, ...twins.get(key) ?? []]) {
      store(result, name, stored, many && collected.has(name));
    }
  }

  const end = args.indexOf("--");
  const parsed = end < 0 ? args : args.slice(0, end);
  const verbatim = end < 0 ? [] : args.slice(end + 1);

  /** Sets the option from the next argument where that one is its value. */
  function putWithNext(key: string, arg: string, next?: string): 0 | 1 {
    if (next && !flags.has(key) && !isOption(arg, next, allFlags)) {
      put(key, next, arg);
      return 1;
    }
    if (next === "true" || next === "false") {
      put(key, next === "true", arg);
      return 1;
    }
    put(key, strings.has(key) ? "" : true, arg);
    return 0;
  }

  for (let i = 0; i < parsed.length; i++) {
    const arg = parsed[i];
    if (arg.startsWith("--")) {
      const equals = arg.indexOf("=");
      if (equals > 2) {
        const key = arg.slice(2, equals);
        const value = arg.slice(equals + 1);
        put(key, flags.has(key) ? value !== "false" : value, arg);
        continue;
      }
      const key = arg.slice(2);
      if (key.startsWith("no-") && negatable.has(key.slice(3))) {
        put(key.slice(3), false, arg, false);
        continue;
      }
      i += putWithNext(key, arg, parsed[i + 1]);
    } else if (arg.startsWith("-") && arg !== "-") {
      const last = shortOptions(arg, strings, put);
      if (last !== undefined) i += putWithNext(last, arg, parsed[i + 1]);
    } else {
      if (options.unknown?.(arg) !== false) {
        positional.push(strings.has("_") ? arg : numeric(arg));
      }
      if (options.stopEarly) {
        positional.push(...parsed.slice(i + 1));
        break;
      }
    }
  }

  for (const [key, value] of Object.entries(options.default ?? {})) {
    if (has(result, key)) continue;
    for (const name of [key, ...twins.get(key) ?? []]) {
      store(result, name, value, false);
    }
  }
  for (const name of flags) {
    if (!has(result, name)) {
      store(result, name, collected.has(name) ? [] : false, false);
    }
  }
  for (const name of collected) {
    if (strings.has(name) && !has(result, name)) store(result, name, [], false);
  }
  if (options["--"]) result["--"] = verbatim;
  else positional.push(...verbatim);
  return Object.assign(result, { _: positional }) as ReturnType<
    typeof parseArgs<
      TDoubleDash,
      TBooleans,
      TStrings,
      TCollectable,
      TNegatable,
      TDefaults,
      TAliases
    >
  >;
}

type Tree = { [key: string]: unknown };

/** `-abc`, `-n5`, `-o=file`: sets all but the last letter, which it returns. */
function shortOptions(
  arg: string,
  strings: Set<string>,
  put: (key: string, value: string | boolean, arg: string) => void,
): string | undefined {
  for (let i = 1; i < arg.length - 1; i++) {
    const letter = arg[i];
    const rest = arg.slice(i + 1);
    if (rest === "-") {
      put(letter, "-", arg);
      return undefined;
    }
    if (/[a-z]/i.test(letter)) {
      if (rest.startsWith("=")) {
        put(letter, rest.slice(1), arg);
        return undefined;
      }
      if (/^-?\d+(\.\d*)?(e-?\d+)?$/.test(rest)) {
        put(letter, rest, arg);
        return undefined;
      }
    }
    if (/\W/.test(rest[0])) {
      put(letter, rest, arg);
      return undefined;
    }
    put(letter, strings.has(letter) ? "" : true, arg);
  }
  return arg.at(-1);
}

/** Whether the next argument is an option and so not this one's value. */
function isOption(arg: string, next: string, allFlags: boolean): boolean {
  if (!arg.startsWith("--")) return /^--?[^-]/.test(next);
  return allFlags || next.startsWith("-");
}

function numeric(text: string): string | number {
  return NUMBER.test(text) ? Number(text) : text;
}

/** Every name with the other spellings of the same option. */
function aliasTable(alias: AliasTable): Map<string, string[]> {
  const table = new Map<string, string[]>();
  for (const [key, value] of Object.entries(alias ?? {})) {
    const names = [key, ...(typeof value === "string" ? [value] : value)];
    for (const name of names) {
      table.set(name, names.filter((other) => other !== name));
    }
  }
  return table;
}

function nameSet(
  names: boolean | string | readonly string[] | undefined,
  twins: Map<string, string[]>,
): Set<string> {
  if (names === undefined || typeof names === "boolean") return new Set();
  const list = typeof names === "string" ? [names] : names;
  return new Set(list.flatMap((name) => [name, ...twins.get(name) ?? []]));
}

function store(tree: Tree, name: string, value: unknown, collect: boolean) {
  const path = name.split(".");
  const key = path.pop()!;
  for (const step of path) tree = (tree[step] ??= {}) as Tree;
  const old = tree[key];
  if (!collect) tree[key] = value;
  else if (Array.isArray(old)) old.push(value);
  else tree[key] = old === undefined ? [value] : [old, value];
}

function has(tree: Tree, name: string): boolean {
  const path = name.split(".");
  const key = path.pop()!;
  for (const step of path) {
    if (typeof tree[step] !== "object" || tree[step] === null) return false;
    tree = tree[step] as Tree;
  }
  return Object.hasOwn(tree, key);
}
