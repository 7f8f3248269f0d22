/**
 * Spatial conditions for sampling: any number of T2I-Adapters and ControlNets,
 * each with a strength, a range of steps and a weight per region.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import {
  combineControlNets,
  conditionFactor,
  type ControlNet,
  controlNet,
  type ControlNetConfig,
  type ControlNetResiduals,
  loadControlNet,
  skipChannels,
} from "../models/controlnet.ts";
import type { UNetConfig } from "../models/config.ts";
import type { Network } from "../models/model.ts";
import {
  combineAdapters,
  type CombineOptions,
  featureChannels,
  loadT2IAdapter,
  type T2IAdapter,
  t2iAdapter,
  type T2IAdapterConfig,
} from "../models/t2i_adapter.ts";
import type { UNetOptions } from "../models/unet.ts";
import type { UNetCall } from "./pipeline.ts";
import { isWithin, type Place, shapeMap, shareOut } from "./regions.ts";

/** A network that reads a condition image. */
export type ConditionNetwork =
  | ({ readonly type: "t2i_adapter" } & Network<T2IAdapterConfig, T2IAdapter>)
  | ({ readonly type: "controlnet" } & Network<ControlNetConfig, ControlNet>);

/** One condition. */
export interface Condition {
  /** The network that reads the image. */
  readonly network: ConditionNetwork;
  /** [1, height, width, channels] in [0, 1]; the caller's. */
  readonly image: tf.Tensor4D;
  /**
   * Strength.
   *
   * @default 1
   */
  readonly scale?: number;
  /**
   * Fraction of the steps at which it starts, 0 to 1 (diffusers'
   * `control_guidance_start`).
   *
   * @default 0
   */
  readonly start?: number;
  /**
   * Fraction of the steps at which it ends, 0 to 1 (diffusers'
   * `control_guidance_end`).
   *
   * @default 1
   */
  readonly end?: number;
  /**
   * ControlNet's guess mode: residuals with decreasing scale, in the
   * conditional branch only.
   *
   * @default {true for a ControlNet with `global_pool_conditions`, as in
   * diffusers' pipeline; else false}
   */
  readonly guess?: boolean;
  /**
   * Further factor inside each place; outside of all of them it is 1. Not for a
   * network that {@linkcode isPooled}.
   */
  readonly places?: readonly (Place & { readonly scale: number })[];
}

/** Conditions ready for sampling; owns tensors. */
export interface ConditionedSampling {
  /** `unet` of the pipeline, to be merged with that of regions. */
  unet(call: UNetCall): UNetOptions;
  /** Disposes the features. */
  dispose(): void;
}

/** Number of channels of a network's condition image. */
export function conditionChannels(network: ConditionNetwork): number {
  return network.type === "t2i_adapter"
    ? network.config.in_channels
    : network.config.conditioning_channels;
}

/**
 * Whether a network's residuals are the same at every pixel
 * (`global_pool_conditions`), so that it can have no strength per place.
 */
export function isPooled(network: ConditionNetwork): boolean {
  return network.type === "controlnet" &&
    network.config.global_pool_conditions;
}

/**
 * Differences because of which a network does not fit a UNet.
 *
 * @param network The network.
 * @param unet Config of the UNet.
 * @param factor Downsampling factor of the autoencoder.
 * @returns "expected …, got …" for everything that differs.
 */
export function misfits(
  network: ConditionNetwork,
  unet: UNetConfig,
  factor: number,
): string[] {
  const states = (
    config: UNetConfig,
  ) => [...new Set([config.cross_attention_dim].flat())];
  const pairs: [string, number | number[], number | number[]][] =
    network.type === "t2i_adapter"
      ? [
        [
          "channels",
          [...unet.block_out_channels],
          featureChannels(network.config),
        ],
        ["downscale_factor", factor, network.config.downscale_factor],
      ]
      : [
        ["in_channels", unet.in_channels, network.config.encoder.in_channels],
        [
          "cross_attention_dim",
          states(unet),
          states(network.config.encoder),
        ],
        [
          "channels of skips",
          skipChannels(unet),
          skipChannels(network.config.encoder),
        ],
        ["a condition embedding by", factor, conditionFactor(network.config)],
      ];
  return pairs.filter(([, expected, got]) => `${expected}` !== `${got}`)
    .map(([name, expected, got]) => `expected ${name} ${expected}, got ${got}`);
}

/**
 * Loads the networks that conditions name, each once.
 *
 * @param conditions Network name and type of each condition.
 * @param folders Folders by network name; names without one are left out.
 * @returns Networks by name; their tensors are the caller's.
 * @throws If a network is missing or misshapen; none is left then.
 */
export async function loadConditionNetworks(
  conditions: readonly {
    readonly network: string;
    readonly type: ConditionNetwork["type"];
  }[],
  folders: Readonly<Record<string, string>>,
): Promise<Record<string, ConditionNetwork>> {
  const loaded: Record<string, ConditionNetwork> = {};
  try {
    for (const { network: name, type } of conditions) {
      const folder = folders[name];
      if (folder === undefined || loaded[name]) continue;
      loaded[name] = type === "t2i_adapter"
        ? { type, ...await loadT2IAdapter(folder) }
        : { type, ...await loadControlNet(folder) };
    }
    return loaded;
  } catch (error) {
    disposeTree(Object.values(loaded).map(({ params }) => params));
    throw error;
  }
}

/**
 * Prepares conditions for the pipeline. Features of T2I-Adapters are computed
 * once; a ControlNet runs at every step.
 *
 * @param conditions Networks and images.
 * @param options How several T2I-Adapters are summed.
 * @returns What the pipeline needs; dispose it afterwards.
 * @throws If an option is out of range or an image does not fit.
 *
 * @example
 * ```ts
 * const sketch = { type: "t2i_adapter", ...await loadT2IAdapter(folder) };
 * const conditioned = conditionedSampling([{ network: sketch, image }]);
 * const [picture] = await generate(model, {
 *   prompts: ["a red fox"],
 *   unet: (call) => conditioned.unet(call),
 * });
 * conditioned.dispose();
 * ```
 */
export function conditionedSampling(
  conditions: readonly Condition[],
  options: CombineOptions = {},
): ConditionedSampling {
  conditions.forEach(checkCondition);
  const features = adapterFeatures(conditions);
  const maps = new Map<string, tf.Tensor4D>();
  const placeMap = (i: number, height: number, width: number) => {
    const name = `${i} ${height}x${width}`;
    const known = maps.get(name);
    if (known) return known;
    const map = tf.keep(makeMap(conditions[i].places!, height, width));
    maps.set(name, map);
    return map;
  };
  /** Scale and weight per place of condition i, for one map. */
  const weighted = (i: number, x: tf.Tensor4D): tf.Tensor4D => {
    const { scale = 1, places } = conditions[i];
    const scaled: tf.Tensor4D = scale === 1 ? x : x.mul(scale);
    return places ? scaled.mul(placeMap(i, x.shape[1], x.shape[2])) : scaled;
  };
  return {
    unet(call): UNetOptions {
      const active = conditions.map((_, i) => i).filter((i) =>
        isWithin(call, conditions[i])
      );
      const adapters = active.filter((i) =>
        conditions[i].network.type === "t2i_adapter"
      );
      const nets = active.filter((i) =>
        conditions[i].network.type === "controlnet"
      );
      return {
        ...(adapters.length > 0 && {
          adapterFeatures: combineAdapters(
            adapters.map((i) => features[i]),
            adapters.map((i) => weightOf(conditions[i], features[i], i)),
            options,
          ),
        }),
        ...(nets.length > 0 && combineControlNets(
          nets.map((i) =>
            residuals(conditions[i], call, (x) => weighted(i, x))
          ),
        )),
      };
    },
    dispose() {
      tf.dispose([...features, ...maps.values()]);
    },
  };

  function weightOf(
    { scale = 1, places }: Condition,
    own: readonly tf.Tensor4D[],
    i: number,
  ): number | tf.Tensor4D[] {
    return places
      ? own.map((f) => placeMap(i, f.shape[1], f.shape[2]).mul(scale))
      : scale;
  }
}

/** Refuses settings of a condition that are out of range or do not fit. */
function checkCondition(condition: Condition, i: number): void {
  const what = "sample with conditions";
  const { scale = 1, start = 0, end = 1, guess, network, places } = condition;
  if (!Number.isFinite(scale)) {
    throw cannot(what, `a finite scale of condition ${i}`, scale);
  }
  if (!(start >= 0 && start <= end && end <= 1)) {
    throw cannot(
      what,
      `0 ≤ start ≤ end ≤ 1 of condition ${i}`,
      `start ${start}, end ${end}`,
    );
  }
  if (guess && network.type !== "controlnet") {
    throw cannot(what, `a ControlNet for guess mode`, network.type);
  }
  if (places && isPooled(network)) {
    throw cannot(
      what,
      `no places of condition ${i}, whose ControlNet averages over the ` +
        "picture (global_pool_conditions)",
      places.length,
    );
  }
}

/** Features of the T2I-Adapters; undefined for ControlNets. */
function adapterFeatures(conditions: readonly Condition[]): tf.Tensor4D[][] {
  const features: tf.Tensor4D[][] = [];
  try {
    for (const { network, image } of conditions) {
      features.push(
        network.type === "t2i_adapter"
          ? tf.tidy(() => [
            ...t2iAdapter(network.params, network.config, image),
          ])
          : [],
      );
    }
  } catch (error) {
    tf.dispose(features);
    throw error;
  }
  return features;
}

/** 1 outside of all places, their own factors inside [1, h, w, 1]. */
function makeMap(
  places: NonNullable<Condition["places"]>,
  height: number,
  width: number,
): tf.Tensor4D {
  const shares = shareOut(
    places.map(({ shape }) => shapeMap(shape, height, width)),
    places.map(({ priority = 0 }) => priority),
  );
  const values = new Float32Array(height * width).fill(1);
  places.forEach(({ scale }, i) =>
    shares[i].forEach((share, k) => values[k] += share * (scale - 1))
  );
  return tf.tensor4d(values, [1, height, width, 1]);
}

/** A ControlNet's residuals for one call. */
function residuals(
  { network, image, ...condition }: Condition,
  call: UNetCall,
  weighted: (x: tf.Tensor4D) => tf.Tensor4D,
): ControlNetResiduals {
  const { config, params } = network as Network<ControlNetConfig, ControlNet>;
  const { guess = config.global_pool_conditions } = condition;
  const half = guess && call.branch === "both";
  const rows = call.sample.shape[0];
  const second = <T extends tf.Tensor>(x: T): T =>
    half
      ? tf.slice(x, [rows / 2, ...x.shape.slice(1).map(() => 0)], [
        rows / 2,
        ...x.shape.slice(1),
      ])
      : x;
  const { downResiduals, midResidual } = controlNet(
    params,
    config,
    second(call.sample),
    [call.timestep],
    second(call.states as tf.Tensor3D),
    image,
    { guess },
  );
  const full = (x: tf.Tensor4D): tf.Tensor4D => {
    const y = weighted(x);
    return half ? tf.concat([tf.zerosLike(y), y], 0) : y;
  };
  return {
    downResiduals: downResiduals.map(full),
    midResidual: full(midResidual),
  };
}
