/** Opens the queue's connection that is given, and says how it went. */
import { openLink } from "../../src/lab/link.ts";

try {
  const link = await openLink({ url: Deno.args[0], patience: 5 });
  console.log(await link.redis.ping());
  link.close();
} catch (error) {
  console.log((error as Error).message);
}
Deno.exit();
