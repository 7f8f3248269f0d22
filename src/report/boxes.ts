/**
 * Bounding boxes of SVG elements, for a DOM without layout: plotly needs them
 * to place titles and to rotate labels that would overlap.
 *
 * @module
 */
import { ASCENT, DESCENT, textWidth } from "./text.ts";

/** The properties of an element that are used. */
export interface SvgElement {
  /** Its name. */
  readonly tagName: string;
  /** What is in it. */
  readonly children: Iterable<SvgElement>;
  /** What it is in. */
  readonly parentElement: SvgElement | null;
  /** Its text. */
  readonly textContent: string | null;
  /** Its inline style. */
  readonly style?: { readonly fontSize?: string; readonly textAnchor?: string };
  /** An attribute. */
  getAttribute(name: string): string | null;
}

/** Ends of a box. */
interface Box {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

/** A box as the DOM has it. */
export interface Rectangle extends Box {
  /** The same as `left`. */
  readonly x: number;
  /** The same as `top`. */
  readonly y: number;
  /** Pixels. */
  readonly width: number;
  /** Pixels. */
  readonly height: number;
}

/** x' = a·x + c·y + e, y' = b·x + d·y + f, as SVG writes it. */
type Matrix = readonly [number, number, number, number, number, number];

function times(p: Matrix, q: Matrix): Matrix {
  return [
    p[0] * q[0] + p[2] * q[1],
    p[1] * q[0] + p[3] * q[1],
    p[0] * q[2] + p[2] * q[3],
    p[1] * q[2] + p[3] * q[3],
    p[0] * q[4] + p[2] * q[5] + p[4],
    p[1] * q[4] + p[3] * q[5] + p[5],
  ];
}

const move = (x: number, y: number): Matrix => [1, 0, 0, 1, x, y];

/** The `transform` attribute. */
function transformOf(element: SvgElement): Matrix {
  let whole = move(0, 0);
  const text = element.getAttribute("transform") ?? "";
  for (const [, kind, list] of text.matchAll(/(\w+)\(([^)]*)\)/g)) {
    const [a = 0, b, c = 0, ...rest] = list.split(/[\s,]+/)
      .filter((one) => one !== "").map(Number);
    if (kind === "translate") whole = times(whole, move(a, b ?? 0));
    else if (kind === "scale") whole = times(whole, [a, 0, 0, b ?? a, 0, 0]);
    else if (kind === "rotate") {
      const angle = a * Math.PI / 180;
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      const turned = times(move(b ?? 0, c), [cos, sin, -sin, cos, 0, 0]);
      whole = times(whole, times(turned, move(-(b ?? 0), -c)));
    } else if (kind === "matrix") {
      const [d = 0, e = 0, f = 0] = rest;
      whole = times(whole, [a, b ?? 0, c, d, e, f]);
    }
  }
  return whole;
}

/** The bounding box of a transformed box. */
function through([a, b, c, d, e, f]: Matrix, box: Box): Box {
  const { left, top, right, bottom } = box;
  const corners = [[left, top], [right, top], [left, bottom], [right, bottom]];
  const xs = corners.map(([x, y]) => a * x + c * y + e);
  const ys = corners.map(([x, y]) => b * x + d * y + f);
  return {
    ...{ left: Math.min(...xs), top: Math.min(...ys) },
    ...{ right: Math.max(...xs), bottom: Math.max(...ys) },
  };
}

function around(boxes: readonly Box[]): Box | undefined {
  if (boxes.length === 0) return undefined;
  return {
    left: Math.min(...boxes.map(({ left }) => left)),
    top: Math.min(...boxes.map(({ top }) => top)),
    right: Math.max(...boxes.map(({ right }) => right)),
    bottom: Math.max(...boxes.map(({ bottom }) => bottom)),
  };
}

/** A style that is inherited. */
function inherited(
  element: SvgElement,
  style: "fontSize" | "textAnchor",
  attribute: string,
): string | undefined {
  for (let at: SvgElement | null = element; at; at = at.parentElement) {
    const found = at.style?.[style] || at.getAttribute(attribute);
    if (found) return found;
  }
  return undefined;
}

/** A line of text. */
function textBox(element: SvgElement, host = element): Box {
  const size = parseFloat(inherited(element, "fontSize", "font-size") ?? "12");
  const width = textWidth(element.textContent ?? "", size);
  const number = (from: SvgElement, name: string) =>
    parseFloat(from.getAttribute(name) ?? "0") || 0;
  // A line of several says in em how far it is below the first.
  const below = element === host ? 0 : number(element, "dy") * size;
  const x = number(host, "x"), y = number(host, "y") + below;
  const anchor = inherited(element, "textAnchor", "text-anchor");
  const left = anchor === "middle"
    ? x - width / 2
    : anchor === "end"
    ? x - width
    : x;
  return {
    ...{ left, right: left + width },
    ...{ top: y - ASCENT * size, bottom: y + DESCENT * size },
  };
}

/** The box of an element in its parent; undefined for elements without size. */
function ownBox(element: SvgElement): Box | undefined {
  const number = (name: string) =>
    parseFloat(element.getAttribute(name) ?? "0") || 0;
  switch (element.tagName.toLowerCase()) {
    case "text": {
      const lines = [...element.children].filter((one) =>
        one.getAttribute("class") === "line"
      );
      return lines.length === 0
        ? textBox(element)
        : around(lines.map((line) => textBox(line, element)));
    }
    case "rect":
    case "image":
    case "svg": {
      const [left, top] = [number("x"), number("y")];
      const [width, height] = [number("width"), number("height")];
      return { left, top, right: left + width, bottom: top + height };
    }
    case "a":
    case "g":
      return around(
        [...element.children].flatMap((child) => {
          const box = ownBox(child);
          return box ? [through(transformOf(child), box)] : [];
        }),
      );
    default:
      // Lines and markers lie inside the axes, whose place is known.
      return undefined;
  }
}

function rectangle(box: Box = { left: 0, top: 0, right: 0, bottom: 0 }) {
  const { left, top, right, bottom } = box;
  return { ...box, x: left, y: top, width: right - left, height: bottom - top };
}

/**
 * The box of an element in its own coordinates: `getBBox`.
 *
 * @param element The element.
 */
export function boxOf(element: SvgElement): Rectangle {
  return rectangle(ownBox(element));
}

/**
 * The box of an element in the picture: `getBoundingClientRect`.
 *
 * @param element The element.
 */
export function boxInPage(element: SvgElement): Rectangle {
  let box = ownBox(element);
  for (let at: SvgElement | null = element; box && at; at = at.parentElement) {
    box = through(transformOf(at), box);
  }
  return rectangle(box);
}
