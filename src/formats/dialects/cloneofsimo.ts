/**
 * cloneofsimo/lora: layers are numbered in the order in which PyTorch walks the
 * modules of some classes; the file's metadata names the classes.
 *
 * @module
 */
import * as z from "zod";
import { cannot } from "../../core/errors.ts";
import { sameDiskShape } from "../../models/checkpoint.ts";
import {
  type Component,
  COMPONENTS,
  rankOf,
  type Site,
} from "../../customize/lora.ts";
import { diskShapes, type LoraLayers } from "./base.ts";
import {
  anyKey,
  type Dialect,
  type LoraHeader,
  PREFIX,
  type Present,
} from "./dialect.ts";

/** The layers inside a class of modules; the class may have several names. */
interface TargetClass {
  readonly names: readonly string[];
  readonly component: Component;
  readonly layers: RegExp;
}

/** Larger classes before those that are a part of them. */
const CLASSES: readonly TargetClass[] = [
  {
    names: ["CLIPAttention"],
    component: "textEncoder",
    layers: /\.self_attn\.[^.]+$/,
  },
  { names: ["CLIPMLP"], component: "textEncoder", layers: /\.mlp\.fc[12]$/ },
  {
    names: ["CrossAttention", "Attention"],
    component: "unet",
    layers: /\.attn[12]\.[^.]+(\.0)?$/,
  },
  { names: ["FeedForward"], component: "unet", layers: /\.ff\.net\.[02]\b/ },
  { names: ["GEGLU"], component: "unet", layers: /\.ff\.net\.0\.proj$/ },
  {
    names: ["ResnetBlock2D"],
    component: "unet",
    layers: /\.(conv1|time_emb_proj|conv2|conv_shortcut)$/,
  },
  {
    names: ["Downsample2D"],
    component: "unet",
    layers: /\.downsamplers\.0\.conv$/,
  },
  {
    names: ["Upsample2D"],
    component: "unet",
    layers: /\.upsamplers\.0\.conv$/,
  },
];

/**
 * The order in which diffusers registers modules. Until 0.11 a transformer's
 * feed-forward stood between its two attentions.
 */
const REGISTERED: Readonly<Record<"new" | "old", readonly string[]>> = {
  new: ["attn1", "attn2", "ff"],
  old: ["attn1", "ff", "attn2"],
};

/** Siblings in the order of registration; names of no list are not siblings. */
const SIBLINGS: readonly (readonly string[])[] = [
  ["down_blocks", "up_blocks", "mid_block"],
  ["attentions", "resnets", "downsamplers", "upsamplers"],
  ["to_q", "to_k", "to_v", "to_out"],
  ["conv1", "time_emb_proj", "conv2", "conv_shortcut"],
  ["self_attn", "mlp"],
  ["k_proj", "v_proj", "q_proj", "out_proj"],
  ["fc1", "fc2"],
];

/** How diffusers may have numbered the layers of a file. */
interface Numbering {
  readonly order: "new" | "old";
  /** Whether convolutions inside the classes were adapted, too. */
  readonly convolutions: boolean;
}

const NUMBERINGS: readonly Numbering[] = [
  { order: "new", convolutions: true },
  { order: "old", convolutions: true },
  { order: "new", convolutions: false },
  { order: "old", convolutions: false },
];

function place(segment: string, order: "new" | "old"): number {
  if (/^\d+$/.test(segment)) return Number(segment);
  for (const siblings of [...SIBLINGS, REGISTERED[order]]) {
    const at = siblings.indexOf(segment);
    if (at >= 0) return at;
  }
  return 0;
}

/** Layers of the classes in the order of a numbering. */
function numbered(
  layers: LoraLayers,
  component: Component,
  classes: readonly TargetClass[],
  { order, convolutions }: Numbering,
): Site[] {
  const chosen = [...layers.sites[component].values()].filter((site) =>
    (convolutions || site.kind === "linear") &&
    classes.some((c) => c.layers.test(site.path))
  );
  const keyed = chosen.map((site) => ({
    site,
    places: site.path.split(".").map((segment) => place(segment, order)),
  }));
  keyed.sort((a, b) => {
    for (let i = 0; i < Math.min(a.places.length, b.places.length); i++) {
      if (a.places[i] !== b.places[i]) return a.places[i] - b.places[i];
    }
    return a.places.length - b.places.length;
  });
  return keyed.map(({ site }) => site);
}

const namesSchema = z.array(z.string());

/** The classes that the metadata names for a component. */
function classesOf(
  header: LoraHeader,
  component: Component,
): TargetClass[] | undefined {
  const text = header.metadata?.[PREFIX[component]];
  if (text === undefined) return undefined;
  const what = "read a cloneofsimo LoRA";
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    json = undefined;
  }
  const names = namesSchema.safeParse(json);
  if (!names.success) {
    throw cannot(
      what,
      `a list of classes as metadata "${PREFIX[component]}"`,
      JSON.stringify(text.slice(0, 80)),
    );
  }
  const known = CLASSES.filter((c) => c.component === component);
  const unknown = names.data.filter((name) =>
    !known.some((c) => c.names.includes(name))
  );
  if (unknown.length > 0) {
    throw cannot(
      what,
      `target classes among ${known.flatMap((c) => c.names).join(", ")}`,
      unknown.join(", "),
    );
  }
  return known.filter((c) => c.names.some((name) => names.data.includes(name)));
}

/** How many keys of the file fit the layers they would then be. */
function fitting(
  header: LoraHeader,
  component: Component,
  list: readonly Site[],
): number {
  let count = 0;
  list.forEach((site, i) => {
    const shape = (part: string) =>
      header.entries.get(`${PREFIX[component]}:${i}:${part}`)?.shape;
    const [down, up] = [shape("down"), shape("up")];
    if (!down || !up) return;
    const expected = diskShapes(site, down[0]);
    if (sameDiskShape(down, expected.down) && sameDiskShape(up, expected.up)) {
      count++;
    }
  });
  return count;
}

/** Where files of our own say which order they are numbered in. */
const ORDER = "mix_of_show.block_order";

/** The layers of a component as the file numbers them. */
function listed(
  layers: LoraLayers,
  header: LoraHeader,
  component: Component,
): readonly Site[] {
  const classes = classesOf(header, component);
  if (!classes) return [];
  const told = header.metadata?.[ORDER];
  const candidates = NUMBERINGS.filter(({ order }) =>
    told === undefined || REGISTERED[order].join(" ") === told
  ).map((n) => numbered(layers, component, classes, n));
  let best: readonly Site[] = [];
  let most = -1;
  for (const list of candidates) {
    const count = fitting(header, component, list);
    if (count > most) {
      best = list;
      most = count;
    }
  }
  return best;
}

/** The classes that hold exactly these layers. */
function coveringClasses(
  layers: LoraLayers,
  component: Component,
  present: ReadonlySet<string>,
): TargetClass[] {
  const left = new Set(present);
  const chosen: TargetClass[] = [];
  for (const c of CLASSES) {
    if (c.component !== component) continue;
    const own = [...layers.sites[component].keys()].filter((path) =>
      c.layers.test(path)
    );
    const whole = own.length > 0 && own.every((path) => present.has(path));
    if (!whole || !own.some((path) => left.has(path))) continue;
    chosen.push(c);
    for (const path of own) left.delete(path);
  }
  if (left.size > 0) {
    throw cannot(
      "write a LoRA as cloneofsimo",
      "all layers of a class of modules or none of them",
      `only some, with ${[...left].join(", ")}`,
    );
  }
  return chosen;
}

const EMBEDDING = "<embed>";

/** cloneofsimo/lora. */
export const CLONEOFSIMO: Dialect = {
  id: "cloneofsimo",
  describe: "cloneofsimo/lora (pivotal tuning)",
  detect: (header) =>
    anyKey(header, /^(unet|text_encoder):\d+:(up|down)$/) ||
    Object.values(header.metadata ?? {}).includes(EMBEDDING),
  names: (layers, header) => {
    const found = new Map<string, string>();
    for (const component of COMPONENTS) {
      const prefix = PREFIX[component];
      const used = anyKey(header, new RegExp(`^${prefix}:\\d+:`));
      if (used && header.metadata?.[prefix] === undefined) {
        throw cannot(
          "read a cloneofsimo LoRA",
          `metadata "${prefix}" that names the classes of its layers`,
          "none",
        );
      }
      listed(layers, header, component).forEach(({ path }, i) =>
        found.set(`${component} ${path}`, `${prefix}:${i}`)
      );
    }
    return (component, path) => {
      const name = found.get(`${component} ${path}`);
      return name === undefined ? [] : [name];
    };
  },
  parts: { down: [":down"], up: [":up"] },
  scaleRule: "alpha",
  tokens: {
    rows: "vectors",
    read: (key, header) =>
      header.metadata?.[key] === EMBEDDING ? key : undefined,
    write: (token) => token,
    flat: true,
  },
  required: (layers, header, component) =>
    listed(layers, header, component).map(({ path }) => path),
  faults: (header) => {
    const missing: string[] = [];
    const misshapen: string[] = [];
    for (const [key, value] of Object.entries(header.metadata ?? {})) {
      if (value === EMBEDDING && !header.entries.has(key)) missing.push(key);
      const layer = key.match(/^((?:unet|text_encoder):\d+):rank$/)?.[1];
      const shape = layer && header.entries.get(`${layer}:down`)?.shape;
      if (shape && String(shape[0]) !== value) {
        misshapen.push(
          `${layer}:down (rank ${shape[0]}, metadata says ${value})`,
        );
      }
    }
    return { missing, misshapen };
  },
  metadata: (present: Present, tokens, layers) => {
    const result: Record<string, string> = {};
    for (const component of COMPONENTS) {
      const paths = new Set(present[component].keys());
      if (paths.size === 0) continue;
      const classes = coveringClasses(layers, component, paths);
      const prefix = PREFIX[component];
      result[prefix] = JSON.stringify(classes.flatMap((c) => c.names));
      numbered(layers, component, classes, NUMBERINGS[0]).forEach((site, i) => {
        result[`${prefix}:${i}:rank`] = String(
          rankOf(present[component].get(site.path)!),
        );
      });
    }
    for (const token of tokens) result[token] = EMBEDDING;
    return { ...result, [ORDER]: REGISTERED.new.join(" ") };
  },
  structural: new RegExp(
    `^(unet|text_encoder|(unet|text_encoder):\\d+:rank|${ORDER})$`,
  ),
};
