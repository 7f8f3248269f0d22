/**
 * Calls a function when the user or the system asks the process to end: Ctrl-C
 * (SIGINT), and SIGTERM where there is one.
 *
 * @param ask Called at each signal, in place of ending.
 * @returns Stops listening.
 */
export function onInterrupt(ask: () => void): () => void {
  const signals: Deno.Signal[] = Deno.build.os === "windows"
    ? ["SIGINT"]
    : ["SIGINT", "SIGTERM"];
  for (const signal of signals) Deno.addSignalListener(signal, ask);
  return () => {
    for (const signal of signals) Deno.removeSignalListener(signal, ask);
  };
}
