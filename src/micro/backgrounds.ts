import type { Stream } from "../core/random.ts";

/** Paints a square of `side` pixels: RGB floats in 0–255. */
export type Painter = (out: Float32Array, side: number, draw: Stream) => void;

type Rgb = readonly [number, number, number];

const blend = (a: Rgb, b: Rgb, t: number): Rgb => [
  a[0] + (b[0] - a[0]) * t,
  a[1] + (b[1] - a[1]) * t,
  a[2] + (b[2] - a[2]) * t,
];

/** One pixel: a typed array's `set` takes longer. */
function put(out: Float32Array, i: number, color: Rgb): void {
  out[i] = color[0];
  out[i + 1] = color[1];
  out[i + 2] = color[2];
}

/** Colours every pixel by a function of its place. */
function shade(
  out: Float32Array,
  side: number,
  color: (x: number, y: number) => Rgb,
): void {
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      put(out, (y * side + x) * 3, color(x, y));
    }
  }
}

/** Fills the part of a box that lies inside the image. */
function box(
  out: Float32Array,
  side: number,
  left: number,
  top: number,
  width: number,
  height: number,
  color: Rgb,
): void {
  const x0 = Math.max(0, left), x1 = Math.min(side, left + width);
  for (let y = Math.max(0, top); y < Math.min(side, top + height); y++) {
    for (let x = x0; x < x1; x++) put(out, (y * side + x) * 3, color);
  }
}

/** Blends a disc with a soft edge over the image. */
function disc(
  out: Float32Array,
  side: number,
  cx: number,
  cy: number,
  radius: number,
  color: Rgb,
): void {
  const reach = Math.ceil(radius + 1);
  for (let y = Math.floor(cy) - reach; y <= cy + reach; y++) {
    for (let x = Math.floor(cx) - reach; x <= cx + reach; x++) {
      if (x < 0 || y < 0 || x >= side || y >= side) continue;
      const cover = radius + 0.5 - Math.hypot(x - cx, y - cy);
      if (cover <= 0) continue;
      const t = Math.min(1, cover), i = (y * side + x) * 3;
      for (let c = 0; c < 3; c++) out[i + c] += (color[c] - out[i + c]) * t;
    }
  }
}

const grass: Painter = (out, side, draw) => {
  shade(out, side, (_, y) => blend([128, 200, 84], [74, 156, 52], y / side));
  const dark: Rgb = [46, 120, 38], light: Rgb = [160, 222, 104];
  for (let row = 0; row < 8; row++) {
    for (let column = 0; column < 8; column++) {
      const x = column * 8 + draw.integer(7), y = row * 8 + draw.integer(4);
      const color = draw.uniform() < 0.5 ? dark : light;
      box(out, side, x, y, 1, 5, color);
      box(out, side, x + 1, y + 2, 1, 3, color);
    }
  }
};

const sand: Painter = (out, side, draw) => {
  const phase = draw.uniform() * 6.3, bend = 0.08 + 0.06 * draw.uniform();
  shade(out, side, (x, y) => {
    const wave = Math.sin(y * 0.75 + 2.2 * Math.sin(x * bend + phase));
    return blend([240, 214, 150], [212, 178, 108], 0.5 + 0.5 * wave);
  });
  for (let i = 0; i < 10; i++) {
    disc(out, side, draw.integer(side), draw.integer(side), 0.8, [
      176,
      140,
      84,
    ]);
  }
};

const snow: Painter = (out, side, draw) => {
  const phase = draw.uniform() * 6.3;
  shade(out, side, (x, y) => {
    const hill = side * 0.55 + 4 * Math.sin(x * 0.12 + phase);
    if (y < hill) return blend([150, 190, 224], [196, 220, 240], y / hill);
    return blend([250, 252, 255], [222, 232, 246], (y - hill) / side * 1.6);
  });
  for (let i = 0; i < 22; i++) {
    disc(out, side, draw.integer(side), draw.integer(side), 1.2, [
      255,
      255,
      255,
    ]);
  }
};

const night: Painter = (out, side, draw) => {
  shade(out, side, (_, y) => blend([8, 10, 44], [40, 40, 104], y / side));
  for (let i = 0; i < 24; i++) {
    const x = draw.integer(side), y = draw.integer(side);
    disc(out, side, x, y, draw.uniform() < 0.3 ? 1.1 : 0.5, [250, 246, 214]);
  }
  const x = draw.uniform() < 0.5 ? 8 : side - 9;
  disc(out, side, x, 8, 6, [252, 240, 180]);
};

const sea: Painter = (out, side, draw) => {
  const phase = draw.uniform() * 6.3, offset = draw.integer(9);
  shade(out, side, (x, y) => {
    const crest = (y + offset + 2 * Math.sin(x * 0.4 + phase + (y >> 3))) % 9;
    const deep = blend([54, 158, 222], [14, 84, 170], y / side);
    return crest >= 0 && crest < 2 ? blend(deep, [190, 232, 250], 0.75) : deep;
  });
};

const brick: Painter = (out, side, draw) => {
  shade(out, side, () => [214, 200, 186]);
  const shift = draw.integer(16);
  for (let row = 0; row < 8; row++) {
    for (let column = -1; column < 6; column++) {
      const dim = 0.86 + 0.22 * draw.uniform();
      box(
        out,
        side,
        column * 14 + (row % 2) * 7 + shift - 7,
        row * 8,
        12,
        6,
        [176 * dim, 74 * dim, 54 * dim],
      );
    }
  }
};

const wood: Painter = (out, side, draw) => {
  for (let plank = 0; plank < 5; plank++) {
    const dim = 0.86 + 0.24 * draw.uniform(), phase = draw.uniform() * 6.3;
    const top = plank * 13;
    for (let y = top; y < Math.min(side, top + 13); y++) {
      for (let x = 0; x < side; x++) {
        const grain = Math.sin(
          (y - top) * 1.5 + phase + 1.6 * Math.sin(x * 0.09 + phase),
        );
        const k = dim * (1 + 0.08 * grain);
        out.set([170 * k, 116 * k, 66 * k], (y * side + x) * 3);
      }
    }
    box(out, side, 0, top + 12, side, 1, [84, 52, 28]);
    box(out, side, draw.integer(side), top, 1, 12, [84, 52, 28]);
  }
};

const forest: Painter = (out, side, draw) => {
  shade(out, side, (_, y) => blend([20, 84, 52], [10, 52, 34], y / side));
  for (let trunk = 0; trunk < 5; trunk++) {
    const x = trunk * 13 + draw.integer(7);
    box(out, side, x, 10, 4, side, [104, 70, 44]);
    box(out, side, x, 10, 1, side, [66, 44, 28]);
  }
  for (let i = 0; i < 14; i++) {
    const green: Rgb = draw.uniform() < 0.5 ? [30, 116, 56] : [52, 144, 70];
    disc(out, side, draw.integer(side), draw.integer(15), 5.5, green);
  }
  box(out, side, 0, side - 9, side, 9, [58, 62, 30]);
};

const city: Painter = (out, side, draw) => {
  shade(out, side, (_, y) => blend([176, 202, 216], [222, 226, 222], y / side));
  for (let tower = 0; tower < 5; tower++) {
    const x = tower * 13 + draw.integer(3), top = 6 + draw.integer(22);
    const grey = 88 + draw.integer(50);
    box(out, side, x, top, 11, side, [grey, grey + 4, grey + 14]);
    for (let y = top + 3; y < side - 14; y += 6) {
      for (let column = 0; column < 2; column++) {
        const lit: Rgb = draw.uniform() < 0.6 ? [252, 232, 140] : [60, 66, 84];
        box(out, side, x + 2 + column * 5, y, 2, 3, lit);
      }
    }
  }
  box(out, side, 0, side - 11, side, 11, [62, 62, 68]);
  const dash = draw.integer(12);
  for (let x = -12; x < side; x += 12) {
    box(out, side, x + dash, side - 6, 6, 1, [236, 236, 220]);
  }
};

const sunset: Painter = (out, side, draw) => {
  const horizon = 44 + draw.integer(5);
  shade(out, side, (_, y) => {
    if (y >= horizon) {
      return blend([110, 44, 92], [56, 24, 66], (y - horizon) / 18);
    }
    const t = y / horizon;
    return t < 0.5
      ? blend([126, 52, 136], [238, 92, 88], t * 2)
      : blend([238, 92, 88], [255, 190, 86], t * 2 - 1);
  });
  const cx = 12 + draw.integer(40);
  for (let y = horizon - 10; y < horizon; y++) {
    for (let x = cx - 10; x <= cx + 10; x++) {
      if (x < 0 || x >= side || Math.hypot(x - cx, y - horizon) > 10) continue;
      out.set([255, 242, 160], (y * side + x) * 3);
    }
  }
};

/** The painter of each background word. */
export const PAINTERS: Readonly<Record<string, Painter>> = {
  grass,
  sand,
  snow,
  night,
  sea,
  brick,
  wood,
  forest,
  city,
  sunset,
};
