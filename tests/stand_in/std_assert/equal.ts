/**
 * Whether two values are equal in depth: same kind, same own keys (symbols
 * too), same values; sets and maps regardless of order; dates by time. `NaN`
 * equals `NaN`; `0` does not equal `-0`; `{ a: undefined }` is not `{}`.
 */
export function equal(a: unknown, b: unknown): boolean {
  return compare(a, b, new Map());
}

type Seen = Map<object, Set<object>>;

function compare(a: unknown, b: unknown, seen: Seen): boolean {
  if (Object.is(a, b)) return true;
  if (!isObject(a) || !isObject(b)) return false;
  if (!sameConstructor(a, b)) return false;
  if (a instanceof Date && b instanceof Date) {
    return Object.is(a.getTime(), b.getTime());
  }
  if (a instanceof RegExp && b instanceof RegExp) return `${a}` === `${b}`;
  if (a instanceof URL && b instanceof URL) return a.href === b.href;
  if (a instanceof WeakMap || a instanceof WeakSet) {
    throw new TypeError("Cannot compare WeakMap or WeakSet instances");
  }
  if (a instanceof WeakRef && b instanceof WeakRef) {
    return compare(a.deref(), b.deref(), seen);
  }
  if (isTyped(a) && isTyped(b)) {
    return a.length === b.length && a.every((x, i) => Object.is(x, b[i]));
  }
  // A pair already under comparison further up is assumed equal (cycles).
  const before = seen.get(a);
  if (before?.has(b)) return true;
  seen.set(a, (before ?? new Set<object>()).add(b));
  if (a instanceof Set && b instanceof Set) return sameSet(a, b, seen);
  if (a instanceof Map && b instanceof Map) {
    return sameSet(new Set(a), new Set(b), seen);
  }
  if (a instanceof Error && b instanceof Error && a.message !== b.message) {
    return false;
  }
  const keys = ownKeys(a);
  return keys.length === ownKeys(b).length &&
    keys.every((key) =>
      Object.hasOwn(b, key) &&
      compare(Reflect.get(a, key), Reflect.get(b, key), seen)
    );
}

function isObject(value: unknown): value is object {
  return (typeof value === "object" && value !== null);
}

type Typed = ArrayLike<number | bigint> & {
  every(test: (x: number | bigint, i: number) => boolean): boolean;
};

function isTyped(value: object): value is Typed {
  return ArrayBuffer.isView(value) && !(value instanceof DataView);
}

function sameConstructor(a: object, b: object): boolean {
  // An object without a prototype counts as a plain one.
  return (a.constructor ?? Object) === (b.constructor ?? Object);
}

function ownKeys(value: object): PropertyKey[] {
  return Reflect.ownKeys(value).filter((key) =>
    Object.prototype.propertyIsEnumerable.call(value, key)
  );
}

function sameSet(a: Set<unknown>, b: Set<unknown>, seen: Seen): boolean {
  if (a.size !== b.size) return false;
  const rest = new Set(b);
  for (const x of a) {
    if (rest.delete(x)) continue;
    // A fresh table: a failed try must not count as a cycle in the next one.
    let found = false;
    for (const y of rest) {
      if (!compare(x, y, copy(seen))) continue;
      found = rest.delete(y);
      break;
    }
    if (!found) return false;
  }
  return true;
}

function copy(seen: Seen): Seen {
  return new Map(Array.from(seen, ([a, bs]) => [a, new Set(bs)]));
}
