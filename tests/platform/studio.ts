/**
 * `deno task test:studio`: does in Chromium what a person does with the studio,
 * prints it as it goes, and keeps screenshots in out/studio; the last line
 * counts.
 *
 * @module
 */
// Of its own lock file: nobody else needs these.
// deno-lint-ignore-file no-import-prefix
import axe from "npm:axe-core@4.14.1";
import puppeteer, {
  type ElementHandle,
  type Page,
} from "npm:puppeteer-core@25.16.0";
import * as mos from "../../mod.ts";
import { decodePng, layoutIn, textsOf } from "../../src/exports/formats.ts";
import { build } from "../tools/build.ts";
import { helped, onlyKnown } from "../tools/help.ts";
import { root, runDeno } from "../tools/repository.ts";
import { served } from "./served.ts";

const HELP = `
deno task test:studio [--no-build]

Builds dist/ and walks through its studio in Chromium (CHROMIUM names another
than /usr/bin/chromium): types, draws boxes and lines, draws pictures, stops,
fuses, saves, reloads; then draws with a picked checkpoint on WebGPU (the
software adapter). Screenshots go to out/studio.

  --no-build   dist/ is there
  --help       this text
`;

/** Milliseconds: on a loaded machine all is slow. */
const PATIENCE = 300_000;

/** A page answers within so many milliseconds while its worker works. */
const RESPONSIVE = 1000;

const shots = `${root}/out/studio`;

function holds(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(`does not hold: ${what}`);
}

function equal(got: unknown, expected: unknown, what: string): void {
  const [a, b] = [JSON.stringify(got), JSON.stringify(expected)];
  if (a !== b) throw new Error(`${what}: expected ${b}, got ${a}`);
}

/** What a person sees and does. */
function hands(page: Page, downloads: string) {
  const text = (selector: string) =>
    page.$eval(selector, (element) => element.textContent ?? "");
  const until = (test: string) =>
    page.waitForFunction(test, { timeout: PATIENCE, polling: 50 });
  /** Waits until nothing runs, and gives what is said then. */
  const rest = async () => {
    await until(`document.querySelector("#stop").hidden`);
    const error = await page.$eval(
      "#error",
      (element) => (element as HTMLElement).hidden ? "" : element.textContent,
    );
    return error ? `error: ${error}` : await text("#status");
  };
  return {
    text,
    until,
    rest,
    /** Draws and gives the picture's pixels as text. */
    async draw(): Promise<string> {
      await page.click("#draw");
      await until(`!document.querySelector("#stop").hidden`);
      const said = await rest();
      holds(/^Drawn in/.test(said), `"${said}" says that it was drawn`);
      return await this.picture();
    },
    /** The picture's pixels as text. */
    picture: () =>
      page.$eval("#picture", async (element) => {
        const image = element as HTMLImageElement;
        await image.decode();
        const canvas = document.createElement("canvas");
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        canvas.getContext("2d")!.drawImage(image, 0, 0);
        return canvas.toDataURL();
      }),
    /** Presses a button and gives the file that is saved then. */
    async saved(button: string): Promise<string> {
      const before = new Set(
        [...Deno.readDirSync(downloads)].map((f) => f.name),
      );
      await page.click(button);
      for (let i = 0; i < 100; i++) {
        const found = [...Deno.readDirSync(downloads)].map((f) => f.name)
          .find((name) => !before.has(name) && !name.endsWith(".crdownload"));
        if (found) return `${downloads}/${found}`;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      throw new Error(`${button} saved nothing`);
    },
    /** Types into a field in the place of what is there. */
    async type(selector: string, words: string): Promise<void> {
      await page.click(selector, { count: 3 });
      await page.type(selector, words);
      await page.keyboard.press("Tab");
    },
    /** Moves the pointer over the picture, in parts of it, pressed. */
    async drag(points: readonly (readonly [number, number])[]) {
      const stage = (await page.$("#stage"))!;
      await stage.scrollIntoView();
      const frame = (await stage.boundingBox())!;
      const at = ([x, y]: readonly [number, number]) =>
        [frame.x + x * frame.width, frame.y + y * frame.height] as const;
      await page.mouse.move(...at(points[0]));
      await page.mouse.down();
      for (const point of points) await page.mouse.move(...at(point));
      await page.mouse.up();
    },
    /** Picks a file. */
    async choose(selector: string, path: string): Promise<void> {
      const input = await page.$(selector) as ElementHandle<HTMLInputElement>;
      await input.uploadFile(path);
    },
  };
}

type Hands = ReturnType<typeof hands>;

/** Writes a concept's adapter as kohya's tools do, without its tokens. */
async function writeLora(name: string, to: string): Promise<void> {
  await mos.selectBackend("wasm");
  const model = await mos.loadModel();
  const { adapter } = await mos.loadConcept(
    `${root}/examples/studio/concepts/${name}.safetensors`,
    model,
  );
  await mos.saveLora(to, { adapter }, model, "kohya");
}

/** Faults that axe finds, by width and colours. */
async function audit(page: Page): Promise<void> {
  const faults: string[] = [];
  for (const colours of ["light", "dark"]) {
    await page.emulateMediaFeatures([
      { name: "prefers-color-scheme", value: colours },
    ]);
    for (const width of [360, 1600]) {
      await page.setViewport({ width, height: 900 });
      const wide = await page.evaluate(
        "document.documentElement.scrollWidth",
      ) as number;
      if (wide > width) faults.push(`${width}: the page is ${wide} wide`);
      const found = await page.evaluate(
        "axe.run().then(({ violations }) => violations.map((v) => " +
          "`${v.id}: ${v.nodes.map(({ target }) => target).join()}`))",
      ) as string[];
      faults.push(...found.map((one) => `${colours}, ${width}: ${one}`));
    }
    await page.screenshot({ path: `${shots}/${colours}.png`, fullPage: true });
  }
  await page.emulateMediaFeatures([]);
  await page.setViewport({ width: 1280, height: 960 });
  equal(faults, [], "faults");
}

/** The saved picture, and the same drawn by the command on wasm, as PNG. */
async function sampledAgain(
  file: string,
  ...options: string[]
): Promise<[Uint8Array, Uint8Array]> {
  const out = `${shots}/sampled`;
  await Deno.remove(out, { recursive: true }).catch(() => {});
  const { code, stderr } = await runDeno([
    ...["run", "-q", "-P=online", "src/cli/main.ts", "sample"],
    ...["--from", file, "--backend", "wasm", "--out", out, ...options],
  ]);
  holds(code === 0, `sample draws it: ${stderr}`);
  const names = [...Deno.readDirSync(out)].map(({ name }) => name);
  const name = names.find((name) => name.endsWith(".png"));
  return [await Deno.readFile(file), await Deno.readFile(`${out}/${name}`)];
}

/** Draws the saved picture once more with the command, bit for bit. */
async function sampled(file: string): Promise<void> {
  const concepts = `${root}/examples/studio/concepts`;
  const [own, other] = await sampledAgain(
    file,
    ...["--adapters", "region"],
    ...["--concept", `${concepts}/raja.safetensors`],
    ...["--concept", `${concepts}/momo.safetensors`],
  );
  const [a, b] = [decodePng(own), decodePng(other)];
  holds(a.data.every((v, i) => v === b.data[i]), "the pictures are the same");
  for (const keyword of ["parameters", "mix_of_show"]) {
    const [mine, its] = [own, other].map((png) => textsOf(png).get(keyword));
    equal(mine, its, `the text ${keyword}`);
  }
}

/** The walk: what is done, and what it came to. */
function walk(
  page: Page,
  person: Hands,
): Record<string, () => Promise<string | void>> {
  const { text, until, rest, drag, type, saved, choose } = person;
  const seen: string[] = [];
  const boxes = () =>
    page.$$eval(".boxes .box", (all) => all.map((box) => box.ariaLabel));
  let file = "";
  const fresh = (picture: string) => {
    holds(!seen.includes(picture), "it is another picture");
    seen.push(picture);
  };
  return {
    "the page opens with two boxes and four concepts": async () => {
      await until(
        `/Ready/.test(document.querySelector("#status").textContent)`,
      );
      equal((await boxes()).length, 2, "boxes");
      equal(
        await page.$$eval(
          "#concepts b",
          (all) => all.map((b) => b.textContent),
        ),
        [
          ...["raja, a tiger", "momo, a panda"],
          ...["pogo, a penguin", "dash, a police car"],
        ],
        "concepts",
      );
      return await text("#model-line");
    },
    "nobody is shut out: axe, 360 to 1600 px, light and dark": async () => {
      await page.evaluate(axe.source);
      await audit(page);
    },
    "a sentence and Draw make a picture, and the page answers": async () => {
      await type("#prompt", "two animals on snow");
      await type("#steps", "6");
      // A task that keeps the page from answering is a long one.
      await page.evaluate(`{
        window.longest = 0;
        new PerformanceObserver((list) => {
          for (const { duration } of list.getEntries()) {
            longest = Math.max(longest, duration);
          }
        }).observe({ type: "longtask" });
      }`);
      fresh(await person.draw());
      const longest = await page.evaluate("longest") as number;
      holds(longest < RESPONSIVE, `it waited ${longest} ms`);
      await page.screenshot({ path: `${shots}/drawn.png` });
      return `${await text("#status")} It never waited more than ` +
        `${Math.ceil(longest)} ms.`;
    },
    "the saved picture has its settings, and sample draws it": async () => {
      file = await saved("#save-picture");
      const layout = mos.parseLayout(await layoutIn(file));
      equal(
        [layout.prompt, layout.regions.map(({ concepts }) => concepts)],
        ["two animals on snow", [["raja"], ["momo"]]],
        "its layout",
      );
      await sampled(file);
      return textsOf(await Deno.readFile(file)).get("parameters")!
        .replaceAll("\n", " | ");
    },
    "a box is dragged, moved by keys, and removed": async () => {
      await drag([[0.46, 0.05], [0.5, 0.3], [0.54, 0.6]]);
      const [, , third] = await boxes();
      holds(/^Box 3, pogo.* left 46 %, top 5 %/.test(third!), third!);
      await page.focus(".boxes .box:nth-child(3)");
      await page.keyboard.press("ArrowDown");
      await page.keyboard.down("Shift");
      await page.keyboard.press("ArrowLeft");
      await page.keyboard.up("Shift");
      const moved = (await boxes())[2]!;
      holds(/top 7 % to 52 %, 62 %/.test(moved), moved);
      await page.keyboard.press("Delete");
      equal((await boxes()).length, 2, "boxes");
      return moved;
    },
    "a concept is chosen for a box": async () => {
      await page.select(".box-list li:nth-child(2) select", "pogo");
      equal(
        await page.$eval(
          ".box-list li:nth-child(2) input",
          (input) => (input as HTMLInputElement).value,
        ),
        "a <pogo1> <pogo2>",
        "the prompt",
      );
      fresh(await person.draw());
    },
    "a strength is moved by keys, and the picture follows": async () => {
      await page.focus("#concepts li:nth-child(1) input");
      for (let i = 0; i < 8; i++) await page.keyboard.press("ArrowRight");
      await until(`!document.querySelector("#stop").hidden`);
      const said = await rest();
      fresh(await person.picture());
      return `${await text("#concepts li:nth-child(1) output")}: ${said}`;
    },
    "a sketch is drawn, by pointer and by keys, and steers": async () => {
      await page.click("#tool-sketch");
      const ring = Array.from({ length: 25 }, (_, i) => {
        const angle = i / 24 * 2 * Math.PI;
        return [0.75 + 0.12 * Math.cos(angle), 0.5 + 0.24 * Math.sin(angle)];
      }) as [number, number][];
      await drag(ring);
      await page.focus("#sketch");
      await page.keyboard.press("Space");
      for (let i = 0; i < 6; i++) await page.keyboard.press("ArrowRight");
      await page.keyboard.press("Space");
      const use = () =>
        page.$eval("#sketch-use", (e) => (e as HTMLSelectElement).value);
      equal(await use(), "drawn", "the sketch's use");
      fresh(await person.draw());
      await page.screenshot({ path: `${shots}/sketch.png` });
      await page.click("#pen-clear");
      equal(await use(), "none", "the sketch's use");
      await page.click("#tool-boxes");
    },
    "concepts are fused by weight": async () => {
      await page.click("input[value=weight]");
      fresh(await person.draw());
      return await text("#status");
    },
    "a fusion by gradient tells how far it is, and stops": async () => {
      await page.click("input[value=gradient]");
      await page.click("#draw");
      await until(
        `/ [1-9]\\d* of/.test(document.querySelector("#status").textContent)`,
      );
      const told = await text("#status");
      const before = performance.now();
      await page.click("#stop");
      equal(await rest(), "Stopped.", "what is said");
      return `${told}; stopped after ${
        Math.round(performance.now() - before)
      } ms`;
    },
    "concepts are fused by gradient": async () => {
      fresh(await person.draw());
      await page.screenshot({ path: `${shots}/gradient.png` });
      return await text("#status");
    },
    "what is no adapter is refused in words": async () => {
      const odd = `${shots}/odd.safetensors`;
      await Deno.writeTextFile(odd, "<!doctype html>");
      await choose("#concept-file", odd);
      await until(`!document.querySelector("#error").hidden`);
      const said = await rest();
      holds(/Cannot read .*got an HTML page/.test(said), said);
      return said;
    },
    "a LoRA file is added, called, and drawn": async () => {
      const lora = `${shots}/spot.safetensors`;
      await writeLora("dash", lora);
      await choose("#concept-file", lora);
      await until(`document.querySelectorAll("#concepts li").length === 5`);
      await rest();
      const row = "#concepts li:nth-child(5)";
      await type(`${row} input[type=text]`, "car");
      await rest();
      await page.click("input[value=boxes]");
      await page.click(`${row} button`);
      holds(/^Box 3, spot/.test((await boxes())[2]!), "it has a box");
      fresh(await person.draw());
      return await text("#status");
    },
    "the layout is saved as JSON and opened": async () => {
      const json = await saved("#save-layout");
      const layout = mos.parseLayout(JSON.parse(await Deno.readTextFile(json)));
      equal(layout.regions.length, 3, "regions");
      await page.click(".box-list li:nth-child(3) button");
      await choose("#open-file", json);
      await until(
        `/Opened/.test(document.querySelector("#status").textContent)`,
      );
      await rest();
      equal((await boxes()).length, 3, "boxes");
    },
    "after a reload all is there, and a picture brings back its settings":
      async () => {
        await page.reload();
        await until(
          `/Ready/.test(document.querySelector("#status").textContent)`,
        );
        await rest();
        equal((await boxes()).length, 3, "boxes");
        const entries = await page.$$("#history .entry");
        equal(entries.length, seen.length, "pictures");
        await entries.at(-1)!.click();
        await until(
          `/Opened/.test(document.querySelector("#status").textContent)`,
        );
        equal((await boxes()).length, 2, "boxes");
        equal(await person.picture(), seen[0], "the picture");
        equal(await person.draw(), seen[0], "the picture drawn again");
      },
  };
}

/** The walk with a model of one's own on WebGPU. */
function walkOnWebgpu(
  page: Page,
  person: Hands,
  url: string,
): Record<string, () => Promise<string | void>> {
  const { text, until, rest, type, saved, choose } = person;
  return {
    "WebGPU is used where the address asks for it": async () => {
      await until(
        `/Ready/.test(document.querySelector("#status").textContent)`,
      );
      const line = await text("#model-line");
      holds(/webgpu/.test(line), line);
      return line;
    },
    "a picked single file draws on WebGPU what sample does": async () => {
      await mos.selectBackend("wasm");
      const path = `${shots}/checkpoint.safetensors`;
      await mos.saveSingleFile(path, await mos.loadModel());
      await page.$eval("#tokenizer", (element, address) => {
        (element as HTMLInputElement).value = String(address);
      }, `${url}/models/micro/tokenizer`);
      await choose("#model-file", path);
      await until(
        `/The model is ready/.test(document.querySelector("#status")` +
          `.textContent) || !document.querySelector("#error").hidden`,
      );
      equal(await rest(), "The model is ready.", "what is said");
      const line = await text("#model-line");
      holds(/checkpoint, .*webgpu/.test(line), line);
      await type("#prompt", "two animals on snow");
      await type("#steps", "3");
      await person.draw();
      await page.screenshot({ path: `${shots}/checkpoint.png` });
      const [a, b] = (await sampledAgain(await saved("#save-picture")))
        .map((png) => decodePng(png).data);
      const most = a.reduce((m, v, i) => Math.max(m, Math.abs(v - b[i])), 0);
      holds(most <= 3, `a difference of ${most} is at most 3 of 255`);
      return `${line}; to within ${most} of 255`;
    },
  };
}

if (import.meta.main && !helped(HELP)) {
  onlyKnown("test the studio", "--no-build");
  if (!Deno.args.includes("--no-build")) await build();
  await Deno.mkdir(shots, { recursive: true });
  const downloads = await Deno.makeTempDir();
  await using server = served(`${root}/dist`);
  let [passed, failed] = [0, 0];
  /** Does in a browser of its own what a walk says. */
  const inBrowser = async (
    args: readonly string[],
    address: string,
    stepsOf: (page: Page, person: Hands) => ReturnType<typeof walk>,
  ): Promise<void> => {
    const browser = await puppeteer.launch({
      executablePath: Deno.env.get("CHROMIUM") ?? "/usr/bin/chromium",
      args: ["--no-sandbox", "--disable-dev-shm-usage", ...args],
      protocolTimeout: 2 * PATIENCE,
    });
    try {
      const page = await browser.newPage();
      page.setDefaultTimeout(PATIENCE);
      await page.setViewport({ width: 1280, height: 960 });
      page.on("pageerror", (error) => {
        failed++;
        console.log(`FAILED studio: the page threw ${error}`);
      });
      const session = await page.createCDPSession();
      await session.send("Browser.setDownloadBehavior", {
        behavior: "allow",
        downloadPath: downloads,
      });
      await page.goto(address);
      const steps = stepsOf(page, hands(page, downloads));
      for (const [name, step] of Object.entries(steps)) {
        const begun = performance.now();
        try {
          const said = await step();
          passed++;
          const seconds = ((performance.now() - begun) / 1000).toFixed(1);
          console.log(`ok     studio: ${name} (${seconds} s)`);
          if (said) console.log(`         ${said}`);
        } catch (error) {
          failed++;
          console.log(`FAILED studio: ${name}: ${error}`);
          await page.screenshot({ path: `${shots}/failed-${failed}.png` });
        }
      }
    } finally {
      await browser.close();
    }
  };
  const start = performance.now();
  try {
    await inBrowser([], `${server.url}/studio/`, walk);
    await inBrowser(
      ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"],
      `${server.url}/studio/?backend=webgpu`,
      (page, person) => walkOnWebgpu(page, person, server.url),
    );
  } finally {
    await Deno.remove(downloads, { recursive: true });
  }
  console.log(`${((performance.now() - start) / 1000).toFixed(0)} s`);
  console.log(`${passed} passed, ${failed} failed`);
  Deno.exitCode = failed > 0 ? 1 : 0;
}
