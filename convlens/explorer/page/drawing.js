/* Values to pictures: the numbers of convlens/visualization and of convlens/engine/rendering.py.

   Maps are arrays of numbers row by row, pictures RGBA. Arithmetic is in 64-bit floats. `tables` are site.json's
   colormaps: `sequential` of 0..1, `diverging` of -1..1, `vivid` of two signs, rows of [red, green, blue]. */
import { roundHalfEven } from "./preprocess.js";

const LIMIT_QUANTILE = 0.999; // a few outliers shall not turn the picture black
const OVERLAY_QUANTILE = 0.99; // gradients have long tails: by the 99.9th percentile these pictures stay faint
const PIXELS_SIGMA = 2, SHARES_SIGMA = 3; // pixels of the model's grid
// Black and white of the dimmed photograph: away from both ends, so that colours stand out on either.
const DIMMED_BLACK = 30, DIMMED_WHITE = 205;
const LUMA = [0.299, 0.587, 0.114]; // ITU-R BT.601

// ---- values to maps

/**
 * One value a pixel of values [C, H, W]: the sum over the channels where the method's values are "signed", else the
 * largest magnitude.
 */
export function relevance(values, [channels, height, width], drawing) {
  const pixels = height * width, map = new Float64Array(pixels);
  if (values.length !== channels * pixels) {
    throw new Error(`${values.length} values; need ${channels} x ${height} x ${width}`);
  }
  for (let n = 0; n < values.length; n += 1) {
    const at = n % pixels;
    map[at] = drawing === "signed" ? map[at] + values[n] : Math.max(map[at], Math.abs(values[n]));
  }
  return requireFinite(map);
}

/**
 * A result of `explain` as its map is drawn: coarse maps smoothly from their own cells, since stretched bilinearly they
 * show crosses and edges.
 */
export function drawnMap({ values, dims, cells, drawing }) {
  const [, height, width] = dims;
  return cells ? resizeSmoothly(cells.values, cells.dims, height, width) : relevance(values, dims, drawing);
}

/**
 * The same as it is laid over a photograph: single pixels are spread so that they can be seen. With `overlaySigns`
 * "positive" only the shares for the class are left: smoothed with their sign they would cancel.
 */
export function overlaidMap(result, overlaySigns) {
  const [channels, height, width] = result.dims, map = drawnMap(result);
  if (overlaySigns === "positive") return smooth(map.map(positive), width, height, SHARES_SIGMA);
  return channels > 1 ? smooth(map, width, height, PIXELS_SIGMA) : map;
}

/**
 * The magnitude to draw at full strength: that quantile of all, the largest where it is 0, and 1 where all are 0.
 */
export function limitOf(map, quantile = LIMIT_QUANTILE) {
  const sorted = requireFinite(Float64Array.from(map, Math.abs)).sort();
  return quantileOf(sorted, quantile) || sorted.at(-1) || 1;
}

/* Linear between two neighbours, as numpy's. */
function quantileOf(sorted, quantile) {
  const place = quantile * (sorted.length - 1), below = Math.floor(place);
  const low = sorted[below], high = sorted[Math.min(below + 1, sorted.length - 1)];
  return low + (high - low) * (place - below);
}

/** Gaussian blur by `sigma` pixels, out to 3 sigma, the border repeated; 0 leaves the map as it is. */
export function smooth(map, width, height, sigma) {
  if (!(sigma >= 0 && sigma < Infinity)) throw new Error(`sigma=${sigma} is not a width in pixels; use 0 or more`);
  requireMap(map, width, height);
  const radius = Math.ceil(3 * sigma);
  if (!radius) return Float64Array.from(map);
  const kernel = gaussian(radius, sigma);
  // A Gaussian is separable: one pass down the columns, one along the rows.
  const down = convolved(map, kernel, { lines: width, length: height, between: 1, along: width });
  return convolved(down, kernel, { lines: height, length: width, between: width, along: 1 });
}

function gaussian(radius, sigma) {
  const kernel = Float64Array.from({ length: 2 * radius + 1 }, (_, n) => Math.exp(-0.5 * ((n - radius) / sigma) ** 2));
  const total = kernel.reduce((sum, weight) => sum + weight, 0);
  return kernel.map((weight) => weight / total);
}

/* Each line's positions are `along` apart in memory, its neighbour `between`. */
function convolved(map, kernel, { lines, length, between, along }) {
  const out = new Float64Array(map.length), radius = (kernel.length - 1) / 2;
  for (let line = 0; line < lines; line += 1) {
    for (let n = 0; n < length; n += 1) {
      let sum = 0;
      for (let k = 0; k < kernel.length; k += 1) {
        const near = Math.min(Math.max(n + k - radius, 0), length - 1);
        sum += kernel[k] * map[line * between + near * along];
      }
      out[line * between + n * along] = sum;
    }
  }
  return out;
}

/**
 * Cells [1, rows, columns] enlarged for the eye: the cubic B-spline over them, pixel centres aligned, the border
 * repeated. No value goes beyond the cells', so no sign appears that the map does not have.
 */
export function resizeSmoothly(cells, [, rows, columns], height, width) {
  const down = splineTaps(height, rows), across = splineTaps(width, columns);
  const lines = new Float64Array(rows * width), map = new Float64Array(height * width);
  for (let row = 0; row < rows; row += 1) {
    for (let x = 0; x < width; x += 1) {
      for (const { cell, weight } of across[x]) lines[row * width + x] += weight * cells[row * columns + cell];
    }
  }
  for (let y = 0; y < height; y += 1) {
    for (const { cell, weight } of down[y]) {
      for (let x = 0; x < width; x += 1) map[y * width + x] += weight * lines[cell * width + x];
    }
  }
  return map;
}

/* Each pixel's cells and their shares: of a cell at distance d 2/3 - d² + d³/2, and (2 - d)³/6 from 1 to 2. */
function splineTaps(pixels, cells) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const centre = ((pixel + 0.5) * cells) / pixels - 0.5, first = Math.floor(centre) - 1;
    return [0, 1, 2, 3].map((n) => {
      const distance = Math.abs(centre - (first + n));
      const weight = (positive(2 - distance) ** 3 - 4 * positive(1 - distance) ** 3) / 6;
      return { cell: Math.min(Math.max(first + n, 0), cells - 1), weight };
    });
  });
}

// ---- maps to pictures

/**
 * A map as RGBA by a table of colours, `limit` (by default its own) at full strength.
 *
 * `signed`: the table goes from -limit to +limit with its middle at 0, else from 0, and negative values count as 0.
 */
export function colours(map, { signed = false, limit = limitOf(map), colormap }) {
  requireLimit(limit);
  return painted(requireFinite(map), (value) => {
    const part = clamp(value / limit, signed ? -1 : 0, 1);
    return signed ? signedColour(colormap, part) : colormap[roundHalfEven(part * (colormap.length - 1))];
  });
}

/* A table of an even number of rows has none at 0: white there lies between two. */
function signedColour(table, part) {
  const middle = (table.length - 1) / 2;
  if (Number.isInteger(middle)) return table[roundHalfEven(part * middle) + middle];
  const place = (part + 1) * middle, below = Math.min(Math.floor(place), table.length - 2), share = place - below;
  return table[below].map((level, n) => level + (table[below + 1][n] - level) * share);
}

/**
 * Signed values [3, H, W] around mid grey: 0 is exactly 128, the limit 1 or 255; by default the 99th percentile of all
 * channels together, so that colours keep their proportions (Springenberg 2014, arXiv:1412.6806).
 */
export function gradientColours(values, [channels, height, width], limit = limitOf(values, OVERLAY_QUANTILE)) {
  if (channels !== 3) throw new Error(`values of ${channels} channels; only three make colours: draw their relevance`);
  requireLimit(limit);
  const pixels = height * width, rgba = opaque(pixels);
  requireFinite(values).forEach((value, n) => {
    rgba[(n % pixels) * 4 + Math.floor(n / pixels)] = 128 + roundHalfEven(127 * clamp(value / limit, -1, 1));
  });
  return rgba;
}

/** A result of `explain` alone, in the colours of its kind, as the library's heatmap. */
export function heatmap(result, tables, limit) {
  const { values, dims, drawing } = result;
  if (drawing === "gradient" && dims[0] === 3) return gradientColours(values, dims, limit);
  const signed = drawing === "signed";
  return colours(drawnMap(result), { signed, limit, colormap: signed ? tables.diverging : tables.sequential });
}

/**
 * A map laid over its picture: dimmed grey where it is 0, colour mixed in as it grows to `limit`.
 *
 * Signed maps: red speaks for, blue against. Others: red to yellow, and negative values count as 0. `opacity` 0..1 is
 * the colour's share at the limit, by default the 99th percentile.
 */
export function overlay(display, map, opacity, { signed, limit, tables }) {
  if (map.length * 4 !== display.length || !(opacity >= 0 && opacity <= 1)) {
    throw new Error(
      `a map of ${map.length} pixels on a picture of ${display.length / 4}, opacity ${opacity}; need as many pixels, ` +
        "and 0..1",
    );
  }
  const shown = requireFinite(signed ? map : Float64Array.from(map, positive));
  const most = limit ?? limitOf(shown, OVERLAY_QUANTILE);
  requireLimit(most);
  return painted(shown, (value, n) => {
    const part = clamp(value / most, -1, 1), share = opacity * Math.abs(part), grey = dimmed(display, n);
    return vividColour(part, signed, tables).map((level) => roundHalfEven((1 - share) * grey + share * level));
  });
}

function dimmed(display, n) {
  const luma = LUMA[0] * display[n * 4] + LUMA[1] * display[n * 4 + 1] + LUMA[2] * display[n * 4 + 2];
  return DIMMED_BLACK + ((DIMMED_WHITE - DIMMED_BLACK) / 255) * luma;
}

/* The colours without the pale or dark part of a table: how much is said by the share alone. */
function vividColour(part, signed, { vivid, sequential }) {
  return signed ? vivid[part < 0 ? 0 : 1] : sequential[roundHalfEven((0.42 + 0.43 * part) * (sequential.length - 1))];
}

// ---- small things

function painted(map, colourOf) {
  const rgba = opaque(map.length);
  for (let n = 0; n < map.length; n += 1) rgba.set(colourOf(map[n], n), n * 4);
  return rgba;
}

function opaque(pixels) {
  const rgba = new Uint8ClampedArray(pixels * 4);
  for (let at = 3; at < rgba.length; at += 4) rgba[at] = 255;
  return rgba;
}

const positive = (value) => Math.max(0, value);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function requireLimit(limit) {
  if (!(limit > 0 && limit < Infinity)) throw new Error(`limit=${limit} is no scale; it must be above 0`);
}

function requireMap(map, width, height) {
  if (!map.length || map.length !== width * height) {
    throw new Error(`a map of ${map.length} values; need ${height} x ${width}, neither of them 0`);
  }
  requireFinite(map);
}

function requireFinite(values) {
  const wrong = values.reduce((count, value) => count + !Number.isFinite(value), 0);
  if (wrong) throw new Error(`${wrong} values are not finite; a map is made of numbers`);
  return values;
}
