import { fails, show } from "./_message.ts";

/** Any class. */
// deno-lint-ignore no-explicit-any
export type AnyConstructor = abstract new (...args: any[]) => any;

/** The instances of a class. */
export type GetConstructorType<T extends AnyConstructor> = InstanceType<T>;

/** Throws unless `actual` is an instance of the class. */
export function assertInstanceOf<T extends AnyConstructor>(
  actual: unknown,
  expectedType: T,
  msg?: string,
): asserts actual is GetConstructorType<T> {
  if (actual instanceof expectedType) return;
  const name = expectedType.name || "an anonymous class";
  fails(
    `Expected object to be an instance of "${name}" but was ${show(actual)}`,
    msg,
  );
}
