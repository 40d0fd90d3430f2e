/* Methods of the gradient by the image: as it is, times the image, along a path, and over noisy copies. */
import { GRADIENT, firstRow, inBatches, outputsOf, predict } from "./graph_runs.js";
import { normalDraws } from "./normal_draws.js";
import { number, whole } from "./options.js";

const TOLERATED_GAP = 0.1; // of the score's rise, as the library warns

/** What a graph of gradients gives for the image and its class. */
export async function gradientOf(task, graph) {
  const { outputs, score } = await outputsOf(task, graph);
  return { values: firstRow(outputs, GRADIENT), dims: task.dims, target: task.target, score };
}

/** Shrikumar et al. 2016, arXiv:1605.01713. */
export async function inputTimesGradient(task) {
  const result = await gradientOf(task, "saliency");
  return { ...result, values: result.values.map((value, n) => value * task.x[n]) };
}

/* The sum of the saliency graph's gradients at many points, each by its weight. `partial` makes the map so far. */
async function summedGradients(task, { count, write, weightOf, partial }) {
  const { session, site, target, dims, onPartial } = task;
  const size = task.x.length, total = new Float64Array(size);
  for await (const batch of inBatches(session, site, "saliency", { count, write, target })) {
    const gradients = batch.outputs[GRADIENT].data;
    for (let n = 0; n < batch.rows; n += 1) {
      const weight = weightOf(batch.first + n);
      for (let at = 0; at < size; at += 1) total[at] += weight * gradients[n * size + at];
    }
    const done = batch.first + batch.rows;
    await onPartial({ done, total: count, values: partial(total, done), dims });
  }
  return total;
}

/** Sundararajan 2017, arXiv:1703.01365, by Gauss-Legendre quadrature. A part of the path is no map of less accuracy but
   another one, so there is nothing to show before the end. */
export async function integratedGradients(task) {
  const { session, site, x, target, options } = task;
  const steps = whole(options, "steps", 2, 1000), baseline = number(options, "baseline", -10, 10);
  const { nodes, weights } = gaussLegendre(steps);
  const total = await summedGradients(task, {
    count: steps,
    write: (n, image) => {
      const share = Math.fround((nodes[n] + 1) / 2);
      // Each step rounded as the library's 32-bit floats are: an ulp decides on which side of 0 a ReLU's input lies.
      for (let at = 0; at < image.length; at += 1) {
        image[at] = baseline + Math.fround(share * Math.fround(x[at] - baseline));
      }
    },
    weightOf: (n) => weights[n] / 2,
    partial: () => null,
  });
  const values = Float32Array.from(total, (value, at) => value * (x[at] - baseline));
  const score = (await predict(session, site, x))[target];
  const rise = score - (await predict(session, site, new Float32Array(x.length).fill(baseline)))[target];
  const gap = values.reduce((sum, value) => sum + value, 0) - rise;
  return { values, dims: task.dims, target, score, gap, warnings: gapWarnings(gap, rise, steps) };
}

function gapWarnings(gap, rise, steps) {
  const missed = Math.abs(gap) / Math.max(Math.abs(rise), 1e-6);
  if (missed <= TOLERATED_GAP) return [];
  const percent = Math.round(100 * missed);
  return [`the shares miss the score's rise by ${percent}% with steps=${steps}; more steps bring them nearer`];
}

/** Nodes on -1..1, rising, and weights of Gauss-Legendre quadrature: the zeros of the Legendre polynomial by Newton. */
export function gaussLegendre(count) {
  const nodes = new Float64Array(count), weights = new Float64Array(count);
  for (let n = 0; n < count; n += 1) {
    let node = -Math.cos((Math.PI * (n + 0.75)) / (count + 0.5));
    let { value, slope } = legendre(count, node);
    for (let round = 0; round < 100 && Math.abs(value / slope) > 1e-16; round += 1) {
      node -= value / slope;
      ({ value, slope } = legendre(count, node));
    }
    nodes[n] = node;
    weights[n] = 2 / ((1 - node * node) * slope * slope);
  }
  return { nodes, weights };
}

/* The polynomial of that degree and its derivative, by Bonnet's recursion. */
function legendre(degree, x) {
  let before = 1, value = x;
  for (let n = 2; n <= degree; n += 1) [before, value] = [value, ((2 * n - 1) * x * value - (n - 1) * before) / n];
  return { value, slope: (degree * (x * value - before)) / (x * x - 1) };
}

/** Smilkov et al. 2017, arXiv:1706.03825. */
export async function smoothGrad(task) {
  const { session, site, x, target, options } = task;
  const samples = whole(options, "samples", 1, 1000), noise = number(options, "noise", 0, 1);
  const seed = whole(options, "seed", 0, Number.MAX_SAFE_INTEGER);
  const deviation = noise * rangeOf(x), draw = normalDraws(seed);
  const total = await summedGradients(task, {
    count: samples,
    write: (_, image) => {
      for (let at = 0; at < image.length; at += 1) image[at] = x[at] + deviation * draw();
    },
    weightOf: () => 1,
    partial: (sum, done) => Float32Array.from(sum, (value) => value / done),
  });
  const values = Float32Array.from(total, (value) => value / samples);
  const score = (await predict(session, site, x))[target];
  const generator = "xoshiro128** and Box-Muller: other draws than torch's for the same seed";
  return { values, dims: task.dims, target, score, seed, noise: generator };
}

function rangeOf(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return high - low;
}
