/**
 * `deno task test:browser`: builds the bundle and tests it in headless Chromium,
 * with pages that are cross-origin isolated and that are not; the last line
 * counts.
 *
 * @module
 */
// Of its own lock file: nobody else needs it.
// deno-lint-ignore no-import-prefix
import puppeteer, { type Browser, type Page } from "npm:puppeteer-core@25.16.0";
import { build } from "../tools/build.ts";
import { helped, onlyKnown } from "../tools/help.ts";
import { root } from "../tools/repository.ts";
import { behavioursModule, denoOutcomes, type Outcome, report } from "./run.ts";
import { served } from "./served.ts";

const HELP = `
deno task test:browser [--no-build]

Builds dist/ and tests its bundle in Chromium (CHROMIUM names another than
/usr/bin/chromium): the behaviours of tests/platform/behaviours.ts, compared
with Deno's, on wasm in pages with and without cross-origin isolation, and a
picture on WebGPU's software adapter.

  --no-build   dist/ is there
  --help       this text
`;

/** The most JavaScript that a page should load, in bytes. */
const LIMIT = 1.5e6;

/** Ten minutes: on a loaded machine all is slow. */
const PATIENCE = 600_000;

const BUNDLE = "/dist/bundle/browser/mix-of-show.js";

const PAGE = `<!doctype html><meta charset="utf-8"><title>Mix-of-Show</title>
<link rel="icon" href="data:,">
<script type="module">
import * as mos from "${BUNDLE}";
import { behaviours } from "/behaviours.js";
window.behaviours = async () => {
  const outcomes = [];
  for (const { name, run } of behaviours({
    mos,
    model: mos.embeddedModel.href,
    pictures: location.origin + "/tests/fixtures/pictures/",
  })) {
    try {
      outcomes.push({ name, value: await run() });
    } catch (error) {
      outcomes.push({ name, error: String(error.stack) });
    }
  }
  return outcomes;
};
window.webgpu = async () => {
  const draw = async (backend) => {
    const { describe } = await mos.selectBackend(backend);
    const model = await mos.loadModel();
    const [{ data }] = await mos.generate(model, {
      prompts: ["a red fox"], steps: 2, key: mos.key(7),
    });
    mos.disposeModel(model);
    return { describe, data: [...data] };
  };
  const [a, b] = [await draw("wasm"), await draw("webgpu")];
  const far = a.data.map((v, i) => Math.abs(v - b.data[i]));
  return { describe: b.describe, most: Math.max(...far) };
};
window.leftOut = async () => {
  const said = (work) => work.then(() => "", ({ message }) => message);
  return [
    await said(mos.selectBackend("cpu")),
    await said(mos.resolveModel("org/model")),
  ];
};
window.ready = true;
</script>`;

async function opened(browser: Browser, url: string): Promise<Page> {
  const page = await browser.newPage();
  page.on("pageerror", (error) => console.log(`page: ${error}`));
  page.on("console", (message) => console.log(`console: ${message.text()}`));
  await page.goto(`${url}/page.html`);
  await page.waitForFunction("window.ready", { timeout: 60_000 });
  return page;
}

/** README's lines for a page, with the bundle where it is here. */
async function readmePage(): Promise<string> {
  const readme = await Deno.readTextFile(`${root}/README.md`);
  const [, html] = /```html\n([^]*?)```/.exec(readme)!;
  return `<!doctype html><body>${
    html.replace("./node_modules/mix-of-show/", "/dist/")
  }`;
}

async function launch(...args: string[]): Promise<Browser> {
  return await puppeteer.launch({
    executablePath: Deno.env.get("CHROMIUM") ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-dev-shm-usage", ...args],
    protocolTimeout: PATIENCE,
  });
}

if (import.meta.main && !helped(HELP)) {
  onlyKnown("test", "--no-build");
  if (!Deno.args.includes("--no-build")) await build();
  const pages = {
    "/page.html": PAGE,
    "/behaviours.js": await behavioursModule(),
    "/readme.html": await readmePage(),
  };
  const expected = await denoOutcomes();
  let [passed, failed] = [0, 0];
  const count = (name: string, problem: string | undefined) => {
    if (problem === undefined) passed++;
    else failed++;
    console.log(
      problem === undefined ? `ok     ${name}` : `FAILED ${name}: ${problem}`,
    );
  };
  let bytes = 0;
  for await (const { name } of Deno.readDir(`${root}/dist/bundle/browser`)) {
    if (!name.endsWith(".js")) continue;
    bytes += (await Deno.stat(`${root}/dist/bundle/browser/${name}`)).size;
  }
  count(
    `the bundle: ${(bytes / 1e6).toFixed(2)} MB`,
    bytes <= LIMIT ? undefined : `more than ${LIMIT / 1e6} MB`,
  );
  for (const isolated of [false, true]) {
    const where = isolated ? "isolated page" : "page";
    await using server = served(root, { isolated, pages });
    const browser = await launch();
    try {
      if (!isolated) {
        const page = await browser.newPage();
        await page.goto(`${server.url}/readme.html`);
        await page.waitForFunction(
          "document.querySelector('img')?.naturalWidth === 64",
          { timeout: PATIENCE },
        );
        count("page: README's lines draw a picture", undefined);
        await page.close();
      }
      const page = await opened(browser, server.url);
      const found = await page.evaluate("crossOriginIsolated");
      count(
        `${where}: cross-origin isolated is ${found}`,
        found === isolated ? undefined : "it should not be",
      );
      const outcomes = await page.evaluate("behaviours()") as Outcome[];
      const sum = report(where, outcomes, expected);
      passed += sum.passed;
      failed += sum.failed;
      if (!isolated) {
        const said = await page.evaluate("leftOut()") as string[];
        count(
          "page: what the bundle is without is refused in words",
          said.every((line) => /^Cannot .*(bundle|browser)/.test(line))
            ? undefined
            : JSON.stringify(said),
        );
      }
      // The weights, once more: they are in the page's cache now.
      const before = server.asked.length;
      await page.reload();
      await page.waitForFunction("window.ready");
      await page.evaluate(
        `import("${BUNDLE}").then(async (mos) => {
          await mos.selectBackend("wasm");
          await mos.loadModel();
        })`,
      );
      const again = server.asked.slice(before).filter(({ method, path }) =>
        method === "GET" && path.endsWith(".safetensors")
      );
      count(
        `${where}: weights are fetched once`,
        again.length === 0 ? undefined : `again: ${again[0].path}`,
      );
    } catch (error) {
      count(where, `${error}`);
    } finally {
      await browser.close();
    }
  }
  {
    await using server = served(root, { pages });
    const browser = await launch(
      "--enable-unsafe-webgpu",
      "--use-webgpu-adapter=swiftshader",
    );
    try {
      const page = await opened(browser, server.url);
      const { describe, most } = await page.evaluate("webgpu()") as {
        describe: string;
        most: number;
      };
      count(
        `page: ${describe} draws wasm's picture to within ${most} of 255`,
        most <= 3 ? undefined : "expected 3",
      );
    } catch (error) {
      count("page: WebGPU", `${error}`);
    } finally {
      await browser.close();
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  Deno.exitCode = failed > 0 ? 1 : 0;
}
