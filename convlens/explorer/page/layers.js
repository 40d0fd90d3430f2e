/* A result as pixels of the network's input: the map over the photograph, or alone, with the colours of its bar. */
import * as drawing from "./drawing.js";

const OVERLAY_QUANTILE = 0.99; // as convlens.visualization: gradients have long tails, over a photograph they are faint
const MAP_QUANTILE = 0.999;
const PIXELS_SIGMA = 2; // of overlays, as the engine draws them: single pixels are spread so that they can be seen
const SHARES_SIGMA = 3;
const OVERLAY_LOW = 0.42; // the sequential colours without their dark and pale ends, which the share alone says
const OVERLAY_RANGE = 0.43;
const BAR_STEPS = 256;
const MIDDLE_GREY = 118;

/* The smoothing that is meant for a method's overlay; maps alone are raw. */
export function standardSigma(result, method, kind) {
  if (kind !== "overlay") return 0;
  if (method.overlay_signs === "positive") return SHARES_SIGMA;
  return result.dims[0] > 1 ? PIXELS_SIGMA : 0;
}

/* What is drawn of the result in this kind of view, a number a pixel: `values` as they are drawn, `raw` as they were
   computed. `gradient` are the three channels of a gradient that is drawn as a picture of its own. */
export function mapOf(result, method, kind, sigma) {
  const raw = result.raw ??= drawing.relevance(result.values, result.dims, result.drawing);
  const isPicture = result.drawing === "gradient" && result.dims[0] === 3;
  if (kind !== "overlay" && isPicture) return gradientOf(result, raw, sigma);
  const isShare = kind === "overlay" && method.overlay_signs === "positive";
  const [, height, width] = result.dims;
  const drawn = result.drawn ??= drawing.drawnMap(result);
  const values = drawing.smooth(isShare ? drawn.map((value) => Math.max(0, value)) : drawn, width, height, sigma);
  const signed = result.drawing === "signed" && !isShare;
  const limit = drawing.limitOf(values, kind === "overlay" ? OVERLAY_QUANTILE : MAP_QUANTILE);
  return { values, raw, signed, limit, gradient: null, cells: result.cells?.dims ?? null };
}

function gradientOf({ values, dims: [channels, height, width] }, raw, sigma) {
  const gradient = new Float64Array(values.length);
  for (let n = 0; n < channels; n += 1) {
    const start = n * height * width;
    gradient.set(drawing.smooth(values.subarray(start, start + height * width), width, height, sigma), start);
  }
  const limit = drawing.limitOf(gradient, OVERLAY_QUANTILE);
  return { values: raw, raw, signed: true, limit, gradient, cells: null };
}

/* A canvas of the input's size: over a photograph, alpha is the share of the colour; alone, it is opaque. */
export function layerOf(map, { width, height }, kind, limit, colormaps) {
  const canvas = new OffscreenCanvas(width, height);
  const paint = kind === "overlay" ? sharedColours : plainColours;
  const colours = map.gradient
    ? drawing.gradientColours(map.gradient, [3, height, width], limit) : paint(map, limit, colormaps);
  canvas.getContext("2d").putImageData(new ImageData(colours, width, height), 0, 0);
  return canvas;
}

function sharedColours({ values, signed }, limit, colormaps) {
  const pixels = new Uint8ClampedArray(4 * values.length);
  values.forEach((value, n) => {
    const part = Math.max(-1, Math.min(1, value / limit));
    const colour = overlayColour(part, signed, colormaps);
    pixels.set(colour, 4 * n);
    pixels[4 * n + 3] = 255 * (signed ? Math.abs(part) : Math.max(0, part));
  });
  return pixels;
}

function overlayColour(part, signed, { vivid, sequential }) {
  if (signed) return vivid[part < 0 ? 0 : 1];
  return sequential[Math.round(255 * Math.min(1, OVERLAY_LOW + OVERLAY_RANGE * Math.max(0, part)))];
}

function plainColours({ values, signed }, limit, colormaps) {
  const colormap = signed ? colormaps.diverging : colormaps.sequential;
  return new Uint8ClampedArray(drawing.colours(values, { signed, limit, colormap }));
}

/* What a colour bar needs: the colours from the least value to the limit, over a middle grey where it is an overlay. */
export function barOf({ signed, gradient }, kind, limit, opacity, colormaps) {
  const low = signed ? -limit : 0;
  const values = Float64Array.from({ length: BAR_STEPS }, (_, n) => low + (limit - low) * n / (BAR_STEPS - 1));
  if (gradient) return { colours: Array.from(values, (value) => greyOf(value / limit)), low, high: limit };
  const pixels = (kind === "overlay" ? sharedColours : plainColours)({ values, signed }, limit, colormaps);
  const colours = Array.from(values, (_, n) => {
    const [red, green, blue, alpha] = pixels.subarray(4 * n, 4 * n + 4);
    const share = kind === "overlay" ? opacity * alpha / 255 : 1;
    return [red, green, blue].map((part) => Math.round(share * part + (1 - share) * MIDDLE_GREY));
  });
  return { colours, low, high: limit };
}

/* As drawing.gradientColours has each channel. */
const greyOf = (part) => Array(3).fill(Math.round(128 + 127 * part));
