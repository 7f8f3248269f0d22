/**
 * Draws a layout, with a model that contains its concepts or with adapters that
 * are not fused.
 *
 * @module
 */
import { disposeTree } from "../core/tree.ts";
import { freeFuse } from "../customize/attention_fusion.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import {
  loraComposite,
  loraSwitch,
  promptShares,
} from "../customize/composition.ts";
import { clora } from "../customize/contrastive.ts";
import {
  type AdapterSampling,
  regionAdapters,
} from "../customize/region_adapters.ts";
import { greyPixels } from "../diffusion/condition_images.ts";
import { loadConditionNetworks } from "../diffusion/conditions.ts";
import {
  parseLayout,
  prepareLayout,
  type ResolvedLayout,
  resolveLayout,
} from "../diffusion/layout.ts";
import { generate } from "../diffusion/pipeline.ts";
import { loadConcept } from "../formats/concept_file.ts";
import type { Pixels } from "../io/png.ts";
import type { Art } from "../micro/art.ts";
import { sketchImage } from "../micro/sketch.ts";
import type { Model } from "../models/model.ts";
import { type ComposeHow, type ComposeSpec, noiseKey } from "./specs.ts";
import { pathOf } from "./store.ts";

/**
 * Draws a layout once per noise.
 *
 * @param model The model that the spec refers to.
 * @param spec The spec.
 * @param from Folder of the store, folders of condition networks, art.
 * @param tell Called after each step.
 */
export async function compose(
  model: Model,
  spec: ComposeSpec,
  from: {
    readonly store: string;
    readonly networks: Readonly<Record<string, string>>;
    readonly art: Art;
  },
  tell?: (done: number, total: number) => void,
): Promise<Pixels[]> {
  const layout = parseLayout(spec.layout);
  const sketch = (): Pixels => {
    const { width, height } = layout.size!;
    const outlines = sketchImage(spec.sketch ?? [], width, height, from.art);
    return greyPixels(outlines);
  };
  const resolved = await resolveLayout(layout, {
    read: () => Promise.resolve(sketch()),
  });
  const networks = await loadConditionNetworks(
    layout.conditions,
    from.networks,
  );
  const concepts: Concept[] = [];
  let sampling: AdapterSampling | undefined;
  try {
    for (const id of spec.concepts) {
      concepts.push(await loadConcept(pathOf.concept(from.store, id), model));
    }
    sampling = await samplingOf(model, resolved, concepts, spec.how);
    const { model: own = model, pipeline = {} } = sampling ?? {};
    const { unet, ...hooks } = pipeline;
    const prepared = prepareLayout(own, resolved, {
      networks,
      concepts: concepts.map(({ name }) => name),
      ...(unet ? { regions: () => ({ unet, dispose: () => {} }) } : {}),
    });
    try {
      const count = spec.noise.length;
      return await generate(own, {
        ...prepared.options,
        ...hooks,
        prompts: new Array<string>(count).fill(layout.prompt),
        key: spec.noise.map(noiseKey),
        batch: count,
      }, ({ index, total }) => tell?.(index + 1, total));
    } finally {
      prepared.dispose();
    }
  } finally {
    sampling?.dispose();
    concepts.forEach(disposeConcept);
    disposeTree(Object.values(networks).map(({ params }) => params));
  }
}

async function samplingOf(
  model: Model,
  { layout, regions }: ResolvedLayout,
  concepts: readonly Concept[],
  how: ComposeHow,
): Promise<AdapterSampling | undefined> {
  const { prompt, negative, regional } = layout;
  switch (how) {
    case "model":
      return undefined;
    case "switch":
      return loraSwitch(model, concepts, { prompt, negative });
    case "composite":
      return loraComposite(model, concepts, { prompt, negative });
    case "w-switch":
    case "w-composite": {
      const own = { prompt, negative };
      const shares = await promptShares(model, concepts, own);
      const compose = how === "w-switch" ? loraSwitch : loraComposite;
      return compose(model, concepts, { ...own, shares });
    }
    case "clora":
      return clora(model, concepts, { prompt, negative });
    case "free-fuse":
      return freeFuse(model, concepts, { prompt });
    case "region-adapters":
      return regionAdapters(
        model,
        regions.map((region, i) => ({
          ...region,
          concepts: concepts.filter(({ name }) =>
            layout.regions[i].concepts.includes(name)
          ),
        })),
        regional,
      );
  }
}
