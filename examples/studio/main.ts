/**
 * The studio: a page to draw several concepts into one picture. This is the
 * page; all that needs the library runs in a worker (see engine.ts).
 *
 * @module
 */
import { boxEditor } from "./boxes.ts";
import { startClient, Stopped } from "./client.ts";
import { conceptList, labelOf } from "./concepts.ts";
import { gallery } from "./history.ts";
import type { Combine, ConceptInfo, ModelInfo, Progress } from "./messages.ts";
import { byId, fill, make, save } from "./page.ts";
import { sketchPad } from "./sketch.ts";
import {
  conceptIn,
  recalled,
  requestOf,
  SHIPPED,
  START,
  type State,
  stateOf,
} from "./state.ts";

/** Where the choices are kept between visits. */
const KEPT = "mix-of-show-studio";

/** Milliseconds without a change after which a slider redraws. */
const PATIENCE = 350;

/** What is said of the ways in which concepts act. */
const COMBINE_HELP: Readonly<Record<Combine, string>> = {
  boxes: "Each adapter acts in the boxes that call its concept. Ready at once.",
  weight: "One model for all: the average of the adapters. Ready at once, " +
    "each concept a little weaker.",
  gradient:
    "One model for all: each layer is fitted to what the concepts do. " +
    "Takes a while, once.",
};

const button = (id: string) => byId(id, HTMLButtonElement);
const input = (id: string) => byId(id, HTMLInputElement);
const text = (id: string) => byId(id, HTMLParagraphElement);

const stage = byId("stage", HTMLDivElement);
const picture = byId("picture", HTMLImageElement);
const size = byId("size", HTMLSelectElement);
const sketchUse = byId("sketch-use", HTMLSelectElement);

let state: State = kept();
let model: ModelInfo | undefined;
let concepts: readonly ConceptInfo[] = [];
/** Whether the worker draws or loads. */
let busy = false;
let current: { png: Blob; title: string } | undefined;
let timer: ReturnType<typeof setTimeout> | undefined;
let again = false;

const client = startClient(showProgress);

/** What was chosen in an earlier visit. */
function kept(): State {
  try {
    return { ...START, ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") };
  } catch {
    return START;
  }
}

function change(next: Partial<State>): void {
  state = { ...state, ...next };
  try {
    localStorage.setItem(KEPT, JSON.stringify(state));
  } catch {
    // A private window keeps nothing.
  }
  show();
}

// ---------------------------------------------------------------- showing

const boxes = boxEditor({
  boxes: () => state.boxes,
  concepts: () => concepts,
  label: labelOf,
  change: (boxes) => change({ boxes }),
});

const showConcepts = conceptList({
  concepts: () => concepts,
  strength: (name) => state.strengths[name] ?? 1,
  setStrength(name, strength) {
    change({ strengths: { ...state.strengths, [name]: strength } });
    redrawSoon();
  },
  place(name) {
    const concept = concepts.find((one) => one.name === name)!;
    const free = state.boxes.find(({ prompt }) => !conceptIn(prompt, concepts));
    if (!free) boxes.add();
    const { id, prompt } = free ?? state.boxes.at(-1)!;
    const next = free
      ? recalled(prompt, undefined, concept)
      : `a ${concept.phrase}`;
    change({
      boxes: state.boxes.map((box) =>
        box.id === id ? { ...box, prompt: next } : box
      ),
    });
    say(`${labelOf(concept)} has a box now.`);
  },
  forget: (name) =>
    attempt(async () => {
      await client.ask("forget", { name });
      concepts = concepts.filter((concept) => concept.name !== name);
      show();
    }),
  call: (name, phrase) =>
    attempt(async () => {
      const next = await client.ask("call", { name, phrase });
      concepts = concepts.map((one) => one.name === name ? next : one);
      show();
    }),
});

const pad = sketchPad((image) =>
  change({
    sketch: {
      ...state.sketch,
      image,
      // Who draws wants it to count.
      use: image === "" ? "none" : "drawn",
    },
  })
);

function show(): void {
  const { sketch, boxes: { length } } = state;
  fill(input("prompt"), state.prompt);
  fill(input("negative"), state.negative);
  for (const name of ["seed", "steps", "guidance"] as const) {
    fill(input(name), state[name]);
  }
  fill(input("sketch-scale"), sketch.scale);
  showSizes();
  sketchUse.value = sketch.use;
  sketchUse.disabled = button("tool-sketch").disabled = model?.sketch === false;
  for (
    const radio of document.querySelectorAll<HTMLInputElement>(
      "input[name=combine]",
    )
  ) radio.checked = radio.value === state.combine;
  text("combine-help").textContent = COMBINE_HELP[state.combine];
  stage.style.setProperty(
    "--wide",
    String(state.size.width / state.size.height),
  );
  stage.classList.toggle("waiting", busy);
  text("empty").hidden = !picture.hidden || length > 0;
  pad.resize(state.size);
  void pad.show(sketch.image);
  boxes.show(!picture.hidden);
  showConcepts();
  button("draw").disabled = !model;
  button("draw").textContent = busy ? "Again" : "Draw";
  button("stop").hidden = !busy;
  button("save-picture").disabled = !current;
}

/** Sizes that the model can draw, its own first. */
function showSizes(): void {
  const own = model?.size ?? START.size;
  const shapes = [[1, 1], [1.5, 1], [2, 1], [1, 1.5], [1, 2], [1.5, 1.5]];
  const factor = model?.factor ?? 1;
  const fit = (side: number) => Math.round(side / factor) * factor;
  const all = shapes.map(([x, y]) => ({
    width: fit(own.width * x),
    height: fit(own.height * y),
  }));
  const { width, height } = state.size;
  if (!all.some((one) => one.width === width && one.height === height)) {
    all.push(state.size);
  }
  const names = all.map(({ width, height }) => `${width}×${height}`);
  const there = [...size.options].map(({ value }) => value);
  if (String(there) !== String(names)) {
    size.replaceChildren(
      ...names.map((value) => make("option", { value, textContent: value })),
    );
  }
  size.value = `${width}×${height}`;
}

function say(line: string): void {
  text("status").textContent = line;
}

function showProgress({ what, done, total }: Progress): void {
  const bar = byId("progress", HTMLProgressElement);
  if (total > 0) bar.value = done / total;
  else bar.removeAttribute("value");
  say(total > 0 ? `${what}: ${done} of ${total}` : `${what} …`);
}

function complain(error: unknown): void {
  const line = error instanceof Error ? error.message : String(error);
  text("error").textContent = line;
  text("error").hidden = false;
  say("That did not work.");
}

/** Does something that may fail, and says so if it does. */
async function attempt(work: () => Promise<void>): Promise<void> {
  text("error").hidden = true;
  try {
    await work();
  } catch (error) {
    if (error instanceof Stopped) say("Stopped.");
    else complain(error);
  }
}

/** The same, while nothing else is drawn or loaded. */
async function occupied(work: () => Promise<void>): Promise<void> {
  busy = true;
  show();
  await attempt(work);
  busy = false;
  byId("progress", HTMLProgressElement).value = 0;
  show();
  if (again) await draw();
}

// ---------------------------------------------------------------- drawing

function present(png: Blob, title: string): void {
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(png);
  picture.alt = title;
  picture.hidden = false;
  current = { png, title };
}

const history = await gallery(({ png, title }) =>
  attempt(async () => {
    await open(png);
    present(png, title);
    show();
  })
);

async function draw(): Promise<void> {
  clearTimeout(timer);
  if (busy) {
    // What runs makes room for what is wanted now.
    again = true;
    client.stop();
    return;
  }
  const invalid = document.querySelector<HTMLInputElement>("input:invalid");
  if (invalid) return void invalid.reportValidity();
  again = false;
  await occupied(async () => {
    const request = requestOf(state);
    const { png, seconds, concepts } = await client.ask("draw", request);
    const title = [request.layout.prompt, ...concepts].join(", ");
    const blob = new Blob([png], { type: "image/png" });
    present(blob, title);
    await history.add(blob, title);
    say(
      `Drawn in ${seconds.toFixed(1)} s` +
        (concepts.length > 0 ? ` with ${concepts.join(" and ")}.` : "."),
    );
  });
}

/** Draws when a slider has come to rest, once there is a picture. */
function redrawSoon(): void {
  if (!current) return;
  clearTimeout(timer);
  timer = setTimeout(draw, PATIENCE);
}

// ------------------------------------------------------------------ files

/** Opens a layout, or a picture with one in it. */
async function open(file: Blob): Promise<void> {
  const next = stateOf(state, await client.ask("read", { file }));
  change(next);
  say("Opened; Draw draws it.");
}

async function addConcept(file: Blob | string): Promise<void> {
  const concept = await client.ask("concept", { file });
  concepts = [
    ...concepts.filter(({ name }) => name !== concept.name),
    concept,
  ];
  show();
}

/** Loads a model; without a file the embedded one, with its concepts. */
async function openModel(file?: Blob): Promise<void> {
  const old = concepts;
  concepts = [];
  const tokenizer = input("tokenizer").value;
  model = undefined;
  // `?backend=wasm` or `webgpu`; the latter takes a software adapter, too.
  const backend = new URLSearchParams(location.search).get("backend") ?? "auto";
  model = await client.ask("model", {
    backend,
    ...(file ? { file, tokenizer } : {}),
  });
  text("model-line").textContent = `Model: ${model.name}, ${model.backend}`;
  if (file) {
    // The concepts were another model's: their ordinary words stay.
    const plain = (text: string) =>
      old.reduce(
        (words, { phrase, classWord }) => {
          const article = /^[aeiou]/.test(classWord) ? "an" : "a";
          return words.replaceAll(`a ${phrase}`, `${article} ${classWord}`)
            .replaceAll(phrase, classWord);
        },
        text,
      );
    change({
      prompt: plain(state.prompt),
      boxes: state.boxes.map((box) => ({ ...box, prompt: plain(box.prompt) })),
      size: model.size,
      sketch: { ...state.sketch, use: "none" },
    });
  } else {
    for (const [, name] of SHIPPED) {
      await addConcept(`concepts/${name}.safetensors`);
    }
  }
  say(file ? "The model is ready." : "Ready: press Draw.");
}

/** Takes files by what they are: layouts, pictures, adapters. */
function take(files: Iterable<File>): Promise<void> {
  return occupied(async () => {
    for (const file of files) {
      if (/\.(json|png)$/i.test(file.name)) await open(file);
      else {
        await addConcept(file);
        say(`${file.name} is ready: Use places it.`);
      }
    }
  });
}

const fileName = (title: string) =>
  title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40) || "picture";

// ----------------------------------------------------------------- events

function tool(name: "boxes" | "sketch"): void {
  const sketching = name === "sketch";
  stage.classList.toggle("sketching", sketching);
  button("tool-boxes").ariaPressed = String(!sketching);
  button("tool-sketch").ariaPressed = String(sketching);
  byId("pen", HTMLSpanElement).hidden = !sketching;
  text("sketch-help").hidden = !sketching;
}

function listen(): void {
  button("draw").addEventListener("click", draw);
  button("stop").addEventListener("click", () => {
    again = false;
    say("Stopping …");
    client.stop();
  });
  button("tool-boxes").addEventListener("click", () => tool("boxes"));
  button("tool-sketch").addEventListener("click", () => tool("sketch"));
  button("show-marks").addEventListener("click", () => {
    const bare = stage.classList.toggle("bare");
    button("show-marks").ariaPressed = String(!bare);
  });
  input("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter") draw();
  });
  for (const name of ["prompt", "negative"] as const) {
    input(name).addEventListener(
      "input",
      () => change({ [name]: input(name).value }),
    );
  }
  for (const name of ["seed", "steps", "guidance"] as const) {
    input(name).addEventListener("change", () => {
      if (input(name).validity.valid) {
        change({ [name]: input(name).valueAsNumber });
      }
    });
  }
  input("sketch-scale").addEventListener("change", () => {
    const scale = input("sketch-scale").valueAsNumber;
    if (Number.isFinite(scale)) change({ sketch: { ...state.sketch, scale } });
  });
  sketchUse.addEventListener("change", () => {
    const use = sketchUse.value as State["sketch"]["use"];
    change({ sketch: { ...state.sketch, use } });
    if (use === "drawn") tool("sketch");
  });
  size.addEventListener("change", () => {
    const [width, height] = size.value.split("×").map(Number);
    change({ size: { width, height } });
  });
  button("dice").addEventListener("click", () => {
    change({ seed: Math.floor(Math.random() * 1e6) });
    redrawSoon();
  });
  document.querySelectorAll<HTMLInputElement>("input[name=combine]")
    .forEach((radio) =>
      radio.addEventListener("change", () => {
        change({ combine: radio.value as Combine });
      })
    );
  listenToFiles();
}

function listenToFiles(): void {
  button("save-picture").addEventListener("click", () => {
    if (current) save(`${fileName(current.title)}.png`, current.png);
  });
  button("save-layout").addEventListener("click", () => {
    const json = JSON.stringify(requestOf(state).layout, null, 2);
    save("layout.json", new Blob([json], { type: "application/json" }));
  });
  for (const id of ["open-file", "concept-file"] as const) {
    input(id).addEventListener("change", async () => {
      await take([...input(id).files ?? []]);
      input(id).value = "";
    });
  }
  input("model-file").addEventListener("change", () => {
    const [file] = input("model-file").files ?? [];
    if (!file) return;
    occupied(async () => {
      try {
        await openModel(file);
      } catch (error) {
        // Without a model the page would be of no use.
        await openModel();
        throw error;
      }
    });
  });
  button("embedded").addEventListener("click", () => occupied(openModel));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take([...event.dataTransfer?.files ?? []]);
  });
}

listen();
show();
await occupied(() => openModel());
