import { assertEquals, assertThrows } from "@std/assert";
import { experimentCommand } from "../../src/cli/experiment.ts";
import { type DomainPlan, fig3 } from "../../src/experiments/fig3.ts";

const domain = experimentCommand(fig3);
const parse = (args: readonly string[]) => {
  const { lab, plan } = domain.parse(args)!;
  return { lab, plan: plan as unknown as DomainPlan };
};

Deno.test("the domain experiment: defaults and options", () => {
  const plain = parse([]);
  assertEquals([plain.lab.out, plain.plan.prompts, plain.plan.seeds], [
    "out/domain",
    20,
    [0],
  ]);
  assertEquals(plain.plan.inDomain, ["niko", "finn", "ulla", "zara"]);
  assertEquals(plain.plan.noFusion, false);
  const { plan: options, lab } = parse([
    "--concepts=ulla",
    "--out-domain=kiki,pogo",
    "--method=p+,ed-lora",
    "--alphas=0,0.5",
    "--lr-beside=1e-3",
    "--no-fusion",
    "--cache=/tmp/cache",
  ]);
  assertEquals(options.inDomain, ["ulla"]);
  assertEquals(options.outDomain, ["kiki", "pogo"]);
  assertEquals(options.methods, ["p+", "ed-lora"]);
  assertEquals(options.alphas, [0, 0.5]);
  assertEquals(options.lrBeside, 1e-3);
  assertEquals([options.noFusion, lab.store], [true, "/tmp/cache"]);
  assertEquals(domain.parse(["--help"]), undefined);
});

for (
  const [args, message] of [
    [["--method=dreambooth"], "ed-lora"],
    [["--alphas=0,x"], "--alphas a number"],
    [["--n=21"], "1 to 20"],
    [["--what=1"], "known option"],
  ] as const
) {
  Deno.test(`refused: domain ${args.join(" ")}`, () => {
    assertThrows(() => domain.parse([...args]), Error, message);
  });
}
