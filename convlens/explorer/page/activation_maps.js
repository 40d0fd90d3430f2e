/* Class activation maps: a layer's maps weighted by the gradients of the class's logit, stretched over the image. */
import { gradientOf } from "./gradients.js";
import { MAPS, MAPS_GRADIENT, firstRow, outputsOf } from "./graph_runs.js";

/* The layer's maps and the gradients by them, [channels][cells]. */
async function layerMaps(task) {
  const { site, options } = task, layer = site.graphs.cam.layer;
  if (options.layer && options.layer !== layer) {
    throw new Error(
      `no graph of cam of layer "${options.layer}"; there is: "${layer}"; export another by: ` +
        `convlens export cam --model ${site.model.name} --layer ${options.layer}`,
    );
  }
  const { outputs, score } = await outputsOf(task, "cam");
  const [, channels, height, width] = outputs[MAPS].dims;
  const rows = (name) => split(firstRow(outputs, name), channels);
  return { layer, score, features: rows(MAPS), gradients: rows(MAPS_GRADIENT), height, width };
}

function split(values, parts) {
  const size = values.length / parts;
  return Array.from({ length: parts }, (_, n) => values.subarray(n * size, (n + 1) * size));
}

/** The map that `cellsOf` makes of the layer's maps, rectified where the method says so. */
export async function activationMap(task, cellsOf, isRectified) {
  if (typeof isRectified !== "boolean") throw new Error(`relu=${isRectified} is neither true nor false`);
  const maps = await layerMaps(task), [, height, width] = task.dims;
  const cells = isRectified ? cellsOf(maps).map(rectified) : cellsOf(maps);
  const options = { ...task.options, layer: maps.layer };
  return {
    values: Float32Array.from(stretched(cells, maps, height, width)),
    dims: [1, height, width],
    cells: { values: cells, dims: [1, maps.height, maps.width] },
    target: task.target, score: maps.score, layer: maps.layer, options,
  };
}

const rectified = (value) => Math.max(0, value);
const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);

/* Σ over channels of what `share(gradient, channel)` gives for each cell, times the feature there. */
function weightedSum({ features, gradients, height, width }, shareOf) {
  const cells = new Float64Array(height * width);
  features.forEach((feature, channel) => {
    const share = shareOf(gradients[channel], feature);
    for (let at = 0; at < cells.length; at += 1) cells[at] += share(at) * feature[at];
  });
  return cells;
}

/** Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2. */
export function gradCam(maps) {
  return weightedSum(maps, (gradient) => {
    const mean = sumOf(Float64Array.from(gradient)) / gradient.length;
    return () => mean;
  });
}

/** Draelos & Carin 2020, arXiv:2011.08891. */
export function hiresCam(maps) {
  return weightedSum(maps, (gradient) => (at) => gradient[at]);
}

/** Jiang et al. 2021, doi:10.1109/TIP.2021.3089943. */
export function layerCam(maps) {
  return weightedSum(maps, (gradient) => (at) => rectified(gradient[at]));
}

/** Chattopadhay et al. 2018, arXiv:1710.11063: α is g² / (2 g² + ΣA · g³), 0 where that denominator is. */
export function gradCamPlusPlus(maps) {
  return weightedSum(maps, (gradient, feature) => {
    const total = sumOf(Float64Array.from(feature));
    const weight = sumOf(
      Float64Array.from(gradient, (g) => {
        const denominator = 2 * g ** 2 + total * g ** 3;
        return denominator === 0 ? 0 : (g ** 2 / denominator) * rectified(g);
      }),
    );
    return () => weight;
  });
}

/* Bilinear, pixel centres aligned, the border repeated: torch's interpolate with align_corners=False. */
function stretched(cells, { height: rows, width: columns }, height, width) {
  const across = shares(columns, width), map = new Float64Array(height * width);
  shares(rows, height).forEach(({ low, high, share }, y) => {
    across.forEach((column, x) => {
      const at = (row) =>
        cells[row * columns + column.low] * (1 - column.share) + cells[row * columns + column.high] * column.share;
      map[y * width + x] = at(low) * (1 - share) + at(high) * share;
    });
  });
  return map;
}

/* The two cells that each pixel lies between, and the second one's share. */
function shares(cells, pixels) {
  return Array.from({ length: pixels }, (_, n) => {
    const centre = Math.min(Math.max(((n + 0.5) * cells) / pixels - 0.5, 0), cells - 1);
    const low = Math.floor(centre);
    return { low, high: Math.min(low + 1, cells - 1), share: centre - low };
  });
}

/** Guided backprop times the stretched, rectified Grad-CAM map, which is the same for all channels. */
export async function guidedGradCam(task) {
  const guided = await gradientOf(task, "guided_backprop");
  const maps = await layerMaps(task), [, height, width] = task.dims;
  const map = stretched(gradCam(maps).map(rectified), maps, height, width);
  const values = guided.values.map((value, n) => value * map[n % map.length]);
  const options = { ...task.options, layer: maps.layer };
  return { ...guided, values, layer: maps.layer, options };
}

