/**
 * Boxes: on the picture, where they are drawn, moved and resized, and in the
 * list below it, where they get concepts and prompts.
 *
 * @module
 */
import type { ConceptInfo } from "./messages.ts";
import { byId, fill, follow, keyed, make } from "./page.ts";
import {
  type Box,
  conceptIn,
  inside,
  moved,
  type Place,
  recalled,
  resized,
} from "./state.ts";

/** What the page does when somebody works on boxes. */
export interface BoxEvents {
  /** The boxes there are. */
  boxes(): readonly Box[];
  /** The concepts there are. */
  concepts(): readonly ConceptInfo[];
  /** What to call a concept. */
  label(concept: ConceptInfo): string;
  /** Sets the boxes. */
  change(boxes: readonly Box[]): void;
}

/** Smaller boxes are slips of the hand. */
const LEAST = 0.04;

/** How far an arrow key moves a box. */
const STEP = 0.02;

/** The colour of a box. */
const hue = (index: number) => `var(--hue-${index % 6 + 1})`;

const percent = (value: number) => `${Math.round(value * 100)} %`;

/**
 * Shows boxes and hears what is done to them.
 *
 * @param events What the page does.
 * @returns Shows the boxes as they are now; and adds one.
 */
export function boxEditor(events: BoxEvents): {
  show(drawn: boolean): void;
  add(place?: Place): void;
} {
  const stage = byId("boxes", HTMLDivElement);
  const list = byId("box-list", HTMLUListElement);

  const set = (id: number, change: Partial<Box>) =>
    events.change(
      events.boxes().map((box) => box.id === id ? { ...box, ...change } : box),
    );
  const remove = (id: number) =>
    events.change(events.boxes().filter((box) => box.id !== id));
  const place = (id: number) =>
    events.boxes().find((box) => box.id === id)!.place;

  function add(at?: Place): void {
    const boxes = events.boxes();
    const used = boxes.map(({ prompt }) =>
      conceptIn(prompt, events.concepts())
    );
    const next = events.concepts().find((concept) => !used.includes(concept));
    const offset = boxes.length * 0.06 % 0.4;
    const id = Math.max(0, ...boxes.map((box) => box.id)) + 1;
    const spot = at ?? inside({
      ...{ top: 0.15, bottom: 0.85 },
      ...{ left: 0.1 + offset, right: 0.5 + offset },
    });
    const prompt = recalled("", undefined, next);
    events.change([...boxes, { id, place: spot, prompt: prompt.trimEnd() }]);
  }

  stage.addEventListener("pointerdown", (down) => {
    if (down.target !== stage || down.button !== 0) return;
    const frame = stage.getBoundingClientRect();
    const x = (down.clientX - frame.left) / frame.width;
    const y = (down.clientY - frame.top) / frame.height;
    let spot: Place | undefined;
    const ghost = make("div", { className: "box empty" });
    ghost.style.setProperty("--hue", hue(events.boxes().length));
    stage.append(ghost);
    follow(down, stage, (dx, dy) => {
      spot = inside({ left: x, top: y, right: x + dx, bottom: y + dy });
      lay(ghost, spot);
    }, () => {
      ghost.remove();
      if (!spot) return;
      const { left, top, right, bottom } = spot;
      if (right - left >= LEAST && bottom - top >= LEAST) add(spot);
    });
  });

  function create({ id }: Box): HTMLDivElement {
    const element = make(
      "div",
      { className: "box", tabIndex: 0, role: "group" },
      make("span"),
      make("i"),
    );
    element.addEventListener("pointerdown", (down) => {
      if (down.button !== 0) return;
      down.stopPropagation();
      element.focus();
      const start = place(id);
      const change = (down.target as Element).tagName === "I" ? resized : moved;
      follow(
        down,
        stage,
        (dx, dy) => set(id, { place: change(start, dx, dy) }),
      );
    });
    element.addEventListener("keydown", (event) => {
      const far = {
        ...{ ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0] },
        ...{ ArrowUp: [0, -STEP], ArrowDown: [0, STEP] },
      }[event.key];
      if (far) {
        const change = event.shiftKey ? resized : moved;
        set(id, { place: change(place(id), far[0], far[1]) });
      } else if (event.key === "Delete" || event.key === "Backspace") {
        remove(id);
      } else return;
      event.preventDefault();
    });
    return element;
  }

  function createRow({ id }: Box): HTMLLIElement {
    const choice = make("select");
    const words = make("input", {
      ...{ type: "text", className: "words", spellcheck: false },
      autocomplete: "off",
    });
    const away = make("button", { type: "button", textContent: "✕" });
    choice.addEventListener("change", () => {
      const box = events.boxes().find((box) => box.id === id)!;
      const from = conceptIn(box.prompt, events.concepts());
      const to = events.concepts().find(({ name }) => name === choice.value);
      set(id, { prompt: recalled(box.prompt, from, to) });
    });
    words.addEventListener("input", () => set(id, { prompt: words.value }));
    away.addEventListener("click", () => {
      remove(id);
      byId("add-box", HTMLButtonElement).focus();
    });
    return make(
      "li",
      {},
      make("span", { className: "dot" }),
      choice,
      words,
      away,
    );
  }

  function show(drawn: boolean): void {
    const boxes = events.boxes();
    const concepts = events.concepts();
    const nameOf = ({ prompt }: Box) => {
      const concept = conceptIn(prompt, concepts);
      return concept ? events.label(concept) : prompt;
    };
    const key = ({ id }: Box) => String(id);
    keyed(stage, boxes, key, create, (element, box, i) => {
      lay(element, box.place);
      element.style.setProperty("--hue", hue(i));
      element.classList.toggle("empty", !drawn);
      element.querySelector("span")!.textContent = nameOf(box);
      const { left, top, right, bottom } = box.place;
      element.ariaLabel =
        `Box ${i + 1}, ${nameOf(box)}: from left ${percent(left)}, ` +
        `top ${percent(top)} to ${percent(right)}, ${percent(bottom)}. ` +
        "Arrows move it, with shift they resize it, delete removes it.";
    });
    keyed(list, boxes, key, createRow, (row, box, i) => {
      row.style.setProperty("--hue", hue(i));
      const choice = row.querySelector("select")!;
      const words = row.querySelector("input")!;
      const away = row.querySelector("button")!;
      keyed(
        choice,
        [undefined, ...concepts],
        (concept) => concept?.name ?? "",
        (concept) =>
          make("option", {
            value: concept?.name ?? "",
            textContent: concept ? events.label(concept) : "no concept",
          }),
        () => {},
      );
      choice.value = conceptIn(box.prompt, concepts)?.name ?? "";
      fill(words, box.prompt);
      choice.ariaLabel = `Concept of box ${i + 1}`;
      words.ariaLabel = `Prompt of box ${i + 1}`;
      away.ariaLabel = `Remove box ${i + 1}`;
    });
  }

  byId("add-box", HTMLButtonElement).addEventListener("click", () => add());
  return { show, add };
}

/** Puts an element where a place is. */
function lay(element: HTMLElement, { left, top, right, bottom }: Place): void {
  const { style } = element;
  style.left = `${left * 100}%`;
  style.top = `${top * 100}%`;
  style.width = `${(right - left) * 100}%`;
  style.height = `${(bottom - top) * 100}%`;
}
