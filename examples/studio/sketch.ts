/**
 * The sketch: white lines, one pixel wide, of the picture's own size, as the
 * T2I-Adapter has learned them.
 *
 * @module
 */
import { byId } from "./page.ts";

/** The surface to draw on. */
export interface SketchPad {
  /** Makes it as large as the picture; what was drawn is stretched. */
  resize(size: { readonly width: number; readonly height: number }): void;
  /** Shows a PNG that was kept, or nothing. */
  show(image: string): Promise<void>;
}

/** Steps back that are kept. */
const STEPS = 30;

/**
 * Lets the person draw.
 *
 * @param onChange Called with a PNG as a data: URL after each line; with
 * nothing if the surface is empty.
 */
export function sketchPad(onChange: (image: string) => void): SketchPad {
  const canvas = byId("sketch", HTMLCanvasElement);
  const context = canvas.getContext("2d", { willReadFrequently: true })!;
  const past: ImageData[] = [];
  let shown = "";
  let pen = { x: 0, y: 0, down: false };

  const pixels = () => context.getImageData(0, 0, canvas.width, canvas.height);
  const tell = () => {
    const { data } = pixels();
    shown = data.some((value, i) => i % 4 === 0 && value > 0)
      ? canvas.toDataURL()
      : "";
    onChange(shown);
  };
  const remember = () => {
    past.push(pixels());
    if (past.length > STEPS) past.shift();
  };
  /** A line of whole pixels (Bresenham): the network knows no half tones. */
  function line(x0: number, y0: number, x1: number, y1: number): void {
    context.fillStyle = "#fff";
    const [dx, dy] = [Math.abs(x1 - x0), -Math.abs(y1 - y0)];
    const [sx, sy] = [Math.sign(x1 - x0), Math.sign(y1 - y0)];
    let [x, y, error] = [x0, y0, dx + dy];
    for (;;) {
      context.fillRect(x, y, 1, 1);
      if (x === x1 && y === y1) return;
      const twice = 2 * error;
      if (twice >= dy) [error, x] = [error + dy, x + sx];
      if (twice <= dx) [error, y] = [error + dx, y + sy];
    }
  }

  const at = ({ clientX, clientY }: PointerEvent) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const part = (value: number, most: number) =>
      Math.min(most - 1, Math.max(0, Math.floor(value * most)));
    return {
      x: part((clientX - left) / width, canvas.width),
      y: part((clientY - top) / height, canvas.height),
    };
  };
  let last: { x: number; y: number } | undefined;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    remember();
    last = at(event);
    line(last.x, last.y, last.x, last.y);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = at(event);
    line(last.x, last.y, next.x, next.y);
    last = next;
  });
  for (const name of ["pointerup", "pointercancel"] as const) {
    canvas.addEventListener(name, () => {
      if (last) tell();
      last = undefined;
    });
  }

  canvas.addEventListener("keydown", (event) => {
    const far = {
      ...{ ArrowLeft: [-1, 0], ArrowRight: [1, 0] },
      ...{ ArrowUp: [0, -1], ArrowDown: [0, 1] },
    }[event.key];
    if (!far && event.key !== " ") return;
    event.preventDefault();
    if (far) {
      const [x, y] = [pen.x + far[0], pen.y + far[1]];
      if (x < 0 || y < 0 || x >= canvas.width || y >= canvas.height) return;
      if (pen.down) line(pen.x, pen.y, x, y);
      pen = { ...pen, x, y };
    } else {
      pen = { ...pen, down: !pen.down };
      if (pen.down) {
        remember();
        line(pen.x, pen.y, pen.x, pen.y);
      } else tell();
    }
    canvas.ariaLabel = `Sketch, pen ${pen.down ? "down" : "up"} at ` +
      `${pen.x}, ${pen.y} of ${canvas.width}, ${canvas.height}`;
  });

  byId("pen-undo", HTMLButtonElement).addEventListener("click", () => {
    const before = past.pop();
    if (before) context.putImageData(before, 0, 0);
    tell();
  });
  byId("pen-clear", HTMLButtonElement).addEventListener("click", () => {
    remember();
    clear();
    tell();
  });

  /** Black, not nothing: it is a picture of its own. */
  function clear(): void {
    context.clearRect(0, 0, canvas.width, canvas.height);
  }

  return {
    resize({ width, height }) {
      if (canvas.width === width && canvas.height === height) return;
      canvas.width = width;
      canvas.height = height;
      past.length = 0;
      pen = { x: width >> 1, y: height >> 1, down: false };
      const image = shown;
      shown = "";
      // Lines of another size are drawn anew.
      if (image !== "") void this.show(image).then(tell);
    },
    async show(image) {
      if (image === shown) return;
      shown = image;
      clear();
      if (image === "") return;
      const picture = new Image();
      picture.src = image;
      await picture.decode();
      context.imageSmoothingEnabled = false;
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    },
  };
}
