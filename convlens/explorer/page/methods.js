/* The explanation methods, computed from what exported graphs return: the numbers of convlens/explain.

   A session has `async run(graph, x, count, targets) -> {outputName: {data, dims}}`: `count` images in `x`, channels
   first, and for graphs of gradients a class each. `site` is site.json. Arrays of maps are row by row. */

// Images of one run. On two cores ONNX Runtime was fastest with 4; the memory of a page is what bounds it otherwise.
const BATCH = 4;
const TOLERATED_GAP = 0.1; // of the score's rise, as the library warns

const LOGITS = "logits_NK", GRADIENT = "gradient_NCHW", MAPS = "maps_NCHW", MAPS_GRADIENT = "maps_gradient_NCHW";

/* Each method's graphs, and the function of a task that gives {values, dims}, and what else there is to say. */
const METHODS = {
  saliency: { graphs: ["saliency"], run: (task) => gradientOf(task, "saliency") },
  guided_backprop: { graphs: ["guided_backprop"], run: (task) => gradientOf(task, "guided_backprop") },
  deconvnet: { graphs: ["deconvnet"], run: (task) => gradientOf(task, "deconvnet") },
  input_x_gradient: { graphs: ["saliency"], run: inputTimesGradient },
  integrated_gradients: { graphs: ["saliency", "scores"], run: integratedGradients },
  smoothgrad: { graphs: ["saliency", "scores"], run: smoothGrad },
  grad_cam: { graphs: ["cam"], run: (task) => activationMap(task, gradCam, task.options.relu) },
  hires_cam: { graphs: ["cam"], run: (task) => activationMap(task, hiresCam, task.options.relu) },
  layer_cam: { graphs: ["cam"], run: (task) => activationMap(task, layerCam, true) },
  grad_cam_plus_plus: { graphs: ["cam"], run: (task) => activationMap(task, gradCamPlusPlus, true) },
  guided_grad_cam: { graphs: ["guided_backprop", "cam"], run: guidedGradCam },
  occlusion: { graphs: ["scores"], run: occlusion },
};

/** The names of the graphs that a method runs; null for a method that cannot be computed here. */
export function graphsOf(name) {
  return METHODS[name]?.graphs ?? null;
}

// ---- scores

/** Probabilities of logits, in 64-bit floats: softmax over all classes, sigmoid of each, or "none": as they are. */
export function probabilities(logits, activation) {
  const values = Float64Array.from(logits);
  if (activation === "none") return values;
  if (activation === "sigmoid") return values.map((logit) => 1 / (1 + Math.exp(-logit)));
  if (activation !== "softmax") {
    throw new Error(`no activation "${activation}"; there are: softmax, sigmoid, none`);
  }
  const largest = values.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const powers = values.map((logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

/** The most probable classes as {index, probability}, most probable first; of equal ones the lower index. */
export function topClasses(shares, count) {
  const order = Array.from(shares, (_, index) => index).sort((a, b) => shares[b] - shares[a] || a - b);
  return order.slice(0, count).map((index) => ({ index, probability: shares[index] }));
}

/** What the network gives for an image: its logits, or the embedding of a network without classes. */
export async function predict(session, site, x) {
  const rows = inBatches(session, site, "scores", { count: 1, write: (_, image) => image.set(x) });
  for await (const { outputs } of rows) return firstRow(outputs, LOGITS);
}

/**
 * The same with a window filled: {left, top, width, height} in pixels of the model's input, or a list of such, as a
 * brush paints them. What lies outside the image is left out. `fill` is in normalised units, 0 is the training mean.
 */
export async function hideWindow(session, site, x, window, fill = 0) {
  const { channels, input_size: [height, width] } = site.preprocessing;
  const hidden = Float32Array.from(x);
  let covered = 0;
  for (const each of [window].flat()) {
    const left = Math.max(0, Math.round(each.left)), right = Math.min(width, Math.round(each.left + each.width));
    const top = Math.max(0, Math.round(each.top)), bottom = Math.min(height, Math.round(each.top + each.height));
    covered += Math.max(0, right - left) * Math.max(0, bottom - top);
    fillWindow(hidden, { left, right, top, bottom }, { channels, height, width }, fill);
  }
  if (!covered) {
    throw new Error(`a window that hides nothing of the ${height} x ${width} pixels; put it on the image`);
  }
  return predict(session, site, hidden);
}

// ---- explaining

/**
 * The explanation of one image `x` for the class `target` (null: the predicted one).
 *
 * The result has the raw `values` with their `dims` [C, H, W], how the method is to be `drawing`, and `meta`: how they
 * were computed. Coarse maps have their `cells` {values, dims} before they were stretched. `onPartial({done, total,
 * values, dims})` is awaited after each batch of long work, with the map so far where it means something, else null;
 * work ends where it throws. Options are those of `convlens explain`. Throws an Error for a method, option or class
 * that is not there, for one out of range, and for a graph that the site lacks.
 */
export async function explain(name, session, site, x, target = null, options = {}, onPartial = () => {}) {
  const started = performance.now();
  const method = methodOf(site, name), settings = settingsOf(method, options);
  requireGraphs(site, method);
  const { channels, input_size: [height, width] } = site.preprocessing;
  const dims = [channels, height, width];
  if (x.length !== channels * height * width) {
    throw new Error(`an image of ${x.length} numbers; the model takes ${dims.join(" x ")}`);
  }
  const counts = { forwards: 0, backwards: 0 };
  const task = { name, session: counted(session, counts), site, x, dims, options: settings, onPartial };
  const result = await METHODS[name].run({ ...task, target: await targetOf(task, target) });
  const { values, dims: shape, cells = null, ...facts } = result;
  requireFinite(values);
  const seconds = (performance.now() - started) / 1000;
  const meta = { method: name, target_kind: "logit", options: settings, warnings: [], ...facts, ...counts, seconds };
  return { values, dims: shape, cells, drawing: method.drawing, meta };
}

function methodOf(site, name) {
  const method = site.methods.find((each) => each.name === name);
  const known = site.methods.map((each) => each.name).filter((each) => each in METHODS);
  if (!method || !(name in METHODS)) throw new Error(`no method "${name}" here; there are: ${known.join(", ")}`);
  return method;
}

/* The options that were given beside the defaults of all others. */
function settingsOf(method, options) {
  for (const name of Object.keys(options)) {
    if (!(name in method.options)) {
      const known = Object.keys(method.options).join(", ") || "none";
      throw new Error(`${method.name} has no option "${name}"; there are: ${known}`);
    }
  }
  const settings = { ...method.options, ...options };
  if ((settings.score ?? "logit") !== "logit" && method.name !== "occlusion") {
    throw new Error("an exported graph gives gradients of logits only; use score=logit");
  }
  return settings;
}

function requireGraphs(site, method) {
  for (const graph of METHODS[method.name].graphs) {
    if (!site.graphs[graph]) {
      const remedy = method.missing ?? `export it by: convlens export ${graph} --model ${site.model.name}`;
      throw new Error(`${method.name} needs the graph of ${graph}, which this site lacks; ${remedy}`);
    }
  }
}

function counted(session, counts) {
  return {
    run: async (graph, x, count, targets) => {
      counts[targets ? "backwards" : "forwards"] += count;
      return session.run(graph, x, count, targets);
    },
  };
}

/* Without classes it is -1, as in the library. */
async function targetOf({ name, session, site, x }, target) {
  const classes = site.model.labels.length;
  if (!classes) {
    if (name !== "occlusion" || (target ?? -1) >= 0) {
      throw new Error(
        `${name} explains a class, and this network gives embeddings and has none; use occlusion without a class, ` +
          "which explains how similar the image stays to itself",
      );
    }
    return -1;
  }
  if (target === null || target === undefined) return topClasses(await predict(session, site, x), 1)[0].index;
  if (!Number.isInteger(target) || target < 0 || target >= classes) {
    throw new Error(`target ${target} is out of range; classes are 0..${classes - 1}`);
  }
  return target;
}

function whole(options, name, low, high) {
  const value = number(options, name, low, high);
  if (!Number.isInteger(value)) throw new Error(`${name}=${value} is no whole number; use ${low}..${high}`);
  return value;
}

function number(options, name, low, high) {
  const value = options[name];
  if (typeof value !== "number" || !(value >= low && value <= high)) {
    throw new Error(`${name}=${value} is out of range; use ${low}..${high}`);
  }
  return value;
}

// ---- running graphs

/**
 * The outputs of a graph for `count` images, in batches: {first, rows, outputs}.
 *
 * `write(n, image)` fills in each image in its order. A graph that takes one batch size alone gets the last image
 * again where it needs more.
 */
async function* inBatches(session, site, graph, { count, write, target = null }) {
  const { channels, input_size: [height, width] } = site.preprocessing;
  const size = channels * height * width, fixed = fixedBatch(site, graph), most = fixed ?? BATCH;
  for (let first = 0; first < count; first += most) {
    const rows = Math.min(most, count - first), sent = fixed ?? rows;
    const images = new Float32Array(sent * size);
    for (let n = 0; n < rows; n += 1) write(first + n, images.subarray(n * size, (n + 1) * size));
    for (let n = rows; n < sent; n += 1) images.copyWithin(n * size, (rows - 1) * size, rows * size);
    const targets = target === null ? null : new Array(sent).fill(target);
    const outputs = await session.run(graph, images, sent, targets);
    if (outputs[LOGITS]) requireFinite(outputs[LOGITS].data);
    yield { first, rows, outputs };
  }
}

/* The one batch size that a graph takes; null where it takes any. */
function fixedBatch(site, graph) {
  const size = site.graphs[graph].inputs[0].shape[0];
  return typeof size === "number" && size > 0 ? size : null;
}

function requireFinite(values) {
  if (!values.every(Number.isFinite)) {
    throw new Error("the model's scores are NaN or infinite for this image; its weights may be damaged");
  }
}

/* A copy, since a session may use its memory again. */
function firstRow(outputs, name) {
  const { data, dims } = outputs[name];
  return data.slice(0, data.length / dims[0]);
}

/* The outputs of one image alone, and the target's logit. */
async function outputsOf({ session, site, x, target }, graph) {
  for await (const { outputs } of inBatches(session, site, graph, { count: 1, write: (_, row) => row.set(x), target })) {
    return { outputs, score: outputs[LOGITS].data[target] };
  }
}

// ---- gradients

async function gradientOf(task, graph) {
  const { outputs, score } = await outputsOf(task, graph);
  return { values: firstRow(outputs, GRADIENT), dims: task.dims, target: task.target, score };
}

async function inputTimesGradient(task) {
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

/* Sundararajan 2017, arXiv:1703.01365, by Gauss-Legendre quadrature. A part of the path is no map of less accuracy but
   another one, so there is nothing to show before the end. */
async function integratedGradients(task) {
  const { session, site, x, target, options } = task;
  const steps = whole(options, "steps", 2, 1000), baseline = number(options, "baseline", -10, 10);
  const { nodes, weights } = gaussLegendre(steps);
  const total = await summedGradients(task, {
    count: steps,
    write: (n, image) => {
      const share = Math.fround((nodes[n] + 1) / 2);
      for (let at = 0; at < image.length; at += 1) image[at] = baseline + share * (x[at] - baseline);
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

/* Smilkov et al. 2017, arXiv:1706.03825. */
async function smoothGrad(task) {
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

/** A function that draws from the standard normal distribution: the same numbers for the same seed, on any machine. */
export function normalDraws(seed) {
  const uniform = uniformDraws(seed);
  let spare = null;
  return () => {
    if (spare !== null) {
      const drawn = spare;
      spare = null;
      return drawn;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform();
    spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  };
}

/* 0 <= draw < 1 by xoshiro128** (Blackman & Vigna 2021, arXiv:1805.01407), its state filled by splitmix64. */
function uniformDraws(seed) {
  const state = Uint32Array.from(splitmix(BigInt(seed)));
  const turned = (value, bits) => (value << bits) | (value >>> (32 - bits));
  return () => {
    const drawn = Math.imul(turned(Math.imul(state[1], 5), 7), 9) >>> 0, shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = turned(state[3], 11);
    return drawn / 2 ** 32;
  };
}

/* Four 32-bit words of which no two seeds have the same. */
function splitmix(seed) {
  const words = [], cut = (value) => BigInt.asUintN(64, value);
  let state = seed;
  while (words.length < 4) {
    state = cut(state + 0x9e3779b97f4a7c15n);
    let mixed = cut((state ^ (state >> 30n)) * 0xbf58476d1ce4e5b9n);
    mixed = cut((mixed ^ (mixed >> 27n)) * 0x94d049bb133111ebn);
    mixed ^= mixed >> 31n;
    words.push(Number(mixed & 0xffffffffn), Number(mixed >> 32n));
  }
  return words;
}

// ---- class activation maps

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

async function activationMap(task, cellsOf, isRectified) {
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

/* Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2. */
function gradCam(maps) {
  return weightedSum(maps, (gradient) => {
    const mean = sumOf(Float64Array.from(gradient)) / gradient.length;
    return () => mean;
  });
}

/* Draelos & Carin 2020, arXiv:2011.08891. */
function hiresCam(maps) {
  return weightedSum(maps, (gradient) => (at) => gradient[at]);
}

/* Jiang et al. 2021, doi:10.1109/TIP.2021.3089943. */
function layerCam(maps) {
  return weightedSum(maps, (gradient) => (at) => rectified(gradient[at]));
}

/* Chattopadhay et al. 2018, arXiv:1710.11063: α is g² / (2 g² + ΣA · g³), 0 where that denominator is. */
function gradCamPlusPlus(maps) {
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

/* Guided backprop times the stretched, rectified Grad-CAM map, which is the same for all channels. */
async function guidedGradCam(task) {
  const guided = await gradientOf(task, "guided_backprop");
  const maps = await layerMaps(task), [, height, width] = task.dims;
  const map = stretched(gradCam(maps).map(rectified), maps, height, width);
  const values = guided.values.map((value, n) => value * map[n % map.length]);
  const options = { ...task.options, layer: maps.layer };
  return { ...guided, values, layer: maps.layer, options };
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

// ---- occlusion

/* Zeiler & Fergus 2014, arXiv:1311.2901: the mean score lost over the windows that cover each pixel. */
async function occlusion(task) {
  const { x, target, options } = task, [, height, width] = task.dims;
  const sweep = sweepOptions(options);
  const own = await predict(task.session, task.site, x), scoreOf = scorer(task, own);
  const grids = sweep.sizes.map((size) => new WindowGrid(height, width, size, sweep.stride));
  const total = grids.reduce((sum, grid) => sum + grid.corners.length, 0);
  let done = 0;
  const onDrops = async (count) => {
    done += count;
    await task.onPartial({ done, total, values: meanOfSizes(grids, height * width), dims: [1, height, width] });
  };
  for (const grid of grids) await sweepOver(task, grid, sweep.fill, { scoreOf, own, onDrops });
  return {
    values: meanOfSizes(grids, height * width),
    dims: [1, height, width],
    target, score: scoreOf(own), target_kind: options.score,
    grids: grids.map(({ size, rows, columns, drops }) => ({ window: size, rows, columns, drops })),
  };
}

function sweepOptions(options) {
  const sizes = [options.window].flat();
  for (const size of sizes) whole({ window: size }, "window", 1, 4096);
  if (!sizes.length || sizes.length > 8) throw new Error(`${sizes.length} window sizes; use 1 to 8`);
  if (new Set(sizes).size < sizes.length) throw new Error(`a window is named twice in ${sizes.join(", ")}`);
  if ((options.strategy ?? "full") !== "full" || (options.precision ?? "float32") !== "float32") {
    throw new Error("sweeps in a page are made in full and in float32; leave strategy and precision out");
  }
  const stride = whole(options, "stride", 1, 4096), smallest = Math.min(...sizes);
  if (stride > smallest) {
    throw new Error(`stride=${stride} with window=${smallest} would skip pixels; use 1..${smallest}`);
  }
  if (options.score !== "logit" && options.score !== "probability") {
    throw new Error(`no score "${options.score}"; there are: logit, probability`);
  }
  return { sizes, stride, fill: number(options, "fill", -10, 10) };
}

/* From what the network gives for one image to the score that the sweep watches. */
function scorer({ site, target, options }, own) {
  if (target < 0) return (embedding) => cosine(embedding, own);
  if (options.score === "logit") return (logits) => logits[target];
  return (logits) => probabilities(logits, site.model.activation)[target];
}

function cosine(a, b) {
  let product = 0, lengthA = 0, lengthB = 0;
  for (let n = 0; n < a.length; n += 1) {
    product += a[n] * b[n];
    lengthA += a[n] ** 2;
    lengthB += b[n] ** 2;
  }
  return product / Math.max(Math.sqrt(lengthA) * Math.sqrt(lengthB), Number.MIN_VALUE);
}

async function sweepOver({ session, site, x, dims }, grid, fill, { scoreOf, own, onDrops }) {
  const [channels, height, width] = dims, score = scoreOf(own);
  const write = (n, image) => {
    image.set(x);
    fillWindow(image, grid.window(n), { channels, height, width }, fill);
  };
  for await (const batch of inBatches(session, site, "scores", { count: grid.corners.length, write })) {
    const { data, dims: [images] } = batch.outputs[LOGITS], classes = data.length / images;
    for (let n = 0; n < batch.rows; n += 1) {
      grid.add(batch.first + n, score - scoreOf(data.subarray(n * classes, (n + 1) * classes)));
    }
    await onDrops(batch.rows);
  }
}

function fillWindow(image, { left, right, top, bottom }, { channels, height, width }, fill) {
  for (let channel = 0; channel < channels; channel += 1) {
    for (let row = top; row < bottom; row += 1) {
      const from = (channel * height + row) * width;
      if (right > left) image.fill(fill, from + left, from + right);
    }
  }
}

/* Square windows over an image, row by row, the last of each row flush with the edge; and what they have cost so far. */
class WindowGrid {
  constructor(height, width, size, stride) {
    Object.assign(this, { height, width, size });
    const tops = startsOf(height, size, stride), lefts = startsOf(width, size, stride);
    this.rows = tops.length;
    this.columns = lefts.length;
    this.corners = tops.flatMap((top) => lefts.map((left) => ({ left, top })));
    this.drops = new Float32Array(this.corners.length);
    this.sums = new Float64Array(height * width);
    this.covers = new Int32Array(height * width);
  }

  window(n) {
    const { left, top } = this.corners[n];
    const right = Math.min(left + this.size, this.width), bottom = Math.min(top + this.size, this.height);
    return { left, right, top, bottom };
  }

  add(n, drop) {
    const { left, right, top, bottom } = this.window(n);
    this.drops[n] = drop;
    for (let row = top; row < bottom; row += 1) {
      for (let at = row * this.width + left; at < row * this.width + right; at += 1) {
        this.sums[at] += drop;
        this.covers[at] += 1;
      }
    }
  }
}

function startsOf(length, size, stride) {
  const last = Math.max(length - size, 0), starts = [];
  for (let start = 0; start < last; start += stride) starts.push(start);
  return [...starts, last];
}

/* Each size's map so far, and the mean of those that have reached the pixel; 0 where none has. */
function meanOfSizes(grids, pixels) {
  const values = new Float32Array(pixels);
  for (let at = 0; at < pixels; at += 1) {
    let sum = 0, reached = 0;
    for (const { sums, covers } of grids) {
      if (covers[at]) {
        sum += sums[at] / covers[at];
        reached += 1;
      }
    }
    values[at] = reached ? sum / reached : 0;
  }
  return values;
}
