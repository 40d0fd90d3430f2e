/* A canvas with a picture, the part of it that the network saw, and a map over that part.
   Places are in pixels of the network's input: (0, 0) is the upper left corner of what it saw. All panes share one
   `view`, so that they show the same part: `zoom` 1 fits what the network saw, `x` and `y` are the centre, in shares
   of it. */
const MARGIN = 0.965; // of the canvas is what the network saw, the rest its surroundings
const LARGEST_ZOOM = 40;
const ZOOM_STEP = 1.25;
const PIXELATED = 6; // screen pixels per pixel of the map: from there on each one is meant to be seen
const LARGEST_SIDE = 4096; // of the original, as drawn
const SURROUNDINGS = 0.4; // how strongly the original outside the crop shows
const SMALLEST_WINDOW = 4;
const GREY = [30, 205]; // black and white of the dimmed photograph, as convlens.visualization.overlays draws it
const LUMA = [0.299, 0.587, 0.114];

export const fitted = () => ({ zoom: 1, x: 0.5, y: 0.5 });

/* A picture as the canvases draw it: in colour and dimmed grey, the whole and what the network saw. */
export async function drawable(picture) {
  const { image, display, width, height } = picture;
  const seen = new ImageData(display, width, height);
  const whole = new ImageData(image.data, image.width, image.height);
  const pixels = [whole, dimmed(whole), seen, dimmed(seen)];
  const [colour, grey, seenColour, seenGrey] = await Promise.all(pixels.map(bitmap));
  return { colour, grey, seenColour, seenGrey };
}

function bitmap(pixels) {
  const share = Math.min(1, LARGEST_SIDE / Math.max(pixels.width, pixels.height));
  if (share === 1) return createImageBitmap(pixels);
  const size = { resizeWidth: Math.round(share * pixels.width), resizeHeight: Math.round(share * pixels.height) };
  return createImageBitmap(pixels, { ...size, resizeQuality: "high" });
}

function dimmed({ data, width, height }) {
  const pixels = new Uint8ClampedArray(data.length);
  const [black, white] = GREY;
  for (let n = 0; n < data.length; n += 4) {
    const luma = LUMA[0] * data[n] + LUMA[1] * data[n + 1] + LUMA[2] * data[n + 2];
    pixels.fill(black + (white - black) / 255 * luma, n, n + 3);
    pixels[n + 3] = 255;
  }
  return new ImageData(pixels, width, height);
}

export class Viewer {
  #canvas;
  #pen;
  #view;
  #on;
  #scene = null;
  #waiting = false;
  #pointers = new Map();
  #drag = null;

  /* `on`: {view, probe, hide} are called with a changed view, the pixel under the pointer or null, and a window. */
  constructor(canvas, view, on) {
    this.#canvas = canvas;
    this.#pen = canvas.getContext("2d");
    this.#view = view;
    this.#on = on;
    this.#listen();
    new ResizeObserver(() => this.redraw()).observe(canvas);
  }

  /* `scene`: {picture, drawn, layer, opacity, kind, hiding, window, probe}; `layer` a canvas of the input's size. */
  show(scene) {
    this.#scene = scene;
    this.redraw();
  }

  set view(view) {
    this.#view = view;
    this.redraw();
  }

  redraw() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#draw();
    });
  }

  zoom(factor, at = [this.#canvas.clientWidth / 2, this.#canvas.clientHeight / 2]) {
    const zoom = Math.min(LARGEST_ZOOM, Math.max(0.1, this.#view.zoom * factor));
    const { left, top, width, height } = this.#frame();
    const share = this.#view.zoom / zoom;
    // The place under the pointer stays there.
    const [x, y] = [(at[0] - left) / width, (at[1] - top) / height];
    this.#on.view({ zoom, x: x + share * (this.#view.x - x), y: y + share * (this.#view.y - y) });
  }

  pan(across, down) {
    const { width, height } = this.#frame();
    this.#on.view({ ...this.#view, x: this.#view.x - across / width, y: this.#view.y - down / height });
  }

  /* Where on the canvas what the network saw lies. */
  #frame() {
    const { clientWidth, clientHeight } = this.#canvas;
    const { width, height } = this.#scene?.picture ?? { width: 1, height: 1 };
    const scale = MARGIN * Math.min(clientWidth / width, clientHeight / height) * this.#view.zoom;
    return {
      left: clientWidth / 2 - this.#view.x * scale * width, top: clientHeight / 2 - this.#view.y * scale * height,
      width: scale * width, height: scale * height, scale,
    };
  }

  #pixelAt([x, y]) {
    const { left, top, scale } = this.#frame();
    return [(x - left) / scale, (y - top) / scale];
  }

  #draw() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.#canvas;
    const [width, height] = [Math.round(ratio * clientWidth), Math.round(ratio * clientHeight)];
    if (this.#canvas.width !== width || this.#canvas.height !== height) Object.assign(this.#canvas, { width, height });
    this.#pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#pen.clearRect(0, 0, clientWidth, clientHeight);
    if (!this.#scene?.drawn) return;
    paint(this.#pen, this.#scene, this.#frame(), ratio);
    this.#marks(this.#frame());
  }

  #marks({ left, top, width, height, scale }) {
    const pen = this.#pen;
    pen.lineWidth = 1;
    pen.strokeStyle = "rgb(255 255 255 / 70%)";
    pen.strokeRect(left - 0.5, top - 0.5, width + 1, height + 1);
    const { window: hidden, hiding, probe } = this.#scene;
    if (hidden && hiding) {
      const place = [left + scale * hidden.left, top + scale * hidden.top, scale * hidden.width, scale * hidden.height];
      pen.fillStyle = "rgb(128 128 128 / 92%)";
      pen.fillRect(...place);
      outlined(pen, () => pen.strokeRect(...place));
    }
    if (probe) outlined(pen, () => crosshair(pen, left + scale * (probe[0] + 0.5), top + scale * (probe[1] + 0.5)));
  }

  // ---- pointer

  #listen() {
    const canvas = this.#canvas;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => this.#up(event));
    canvas.addEventListener("pointerleave", () => this.#on.probe(null));
    canvas.addEventListener("dblclick", () => this.#on.view(fitted()));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), [event.offsetX, event.offsetY]);
    }, { passive: false });
  }

  #down(event) {
    const at = [event.offsetX, event.offsetY];
    this.#canvas.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, at);
    if (!this.#scene?.hiding || this.#pointers.size > 1) return;
    this.#drag = this.#grip(this.#pixelAt(at));
  }

  /* Within the window it is moved, elsewhere a new one is drawn. */
  #grip([x, y]) {
    const old = this.#scene.window;
    const isWithin = old && x >= old.left && x < old.left + old.width && y >= old.top && y < old.top + old.height;
    return isWithin ? { by: [x - old.left, y - old.top], size: [old.width, old.height] } : { from: [x, y] };
  }

  #move(event) {
    const at = [event.offsetX, event.offsetY];
    const before = this.#pointers.get(event.pointerId);
    if (!before) {
      this.#on.probe(this.#inside(this.#pixelAt(at)));
      return;
    }
    this.#pointers.set(event.pointerId, at);
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) this.#pinch(before, at, other);
    else if (this.#drag) this.#dragTo(this.#pixelAt(at));
    else this.pan(at[0] - before[0], at[1] - before[1]);
  }

  #pinch(before, now, other) {
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
    this.zoom(apart(now) / Math.max(1, apart(before)), other);
  }

  #dragTo([x, y]) {
    const { by, size, from } = this.#drag;
    if (by) this.#on.hide(this.#clamped({ left: x - by[0], top: y - by[1], width: size[0], height: size[1] }));
    else {
      this.#on.hide(this.#clamped({
        left: Math.min(x, from[0]), top: Math.min(y, from[1]),
        width: Math.abs(x - from[0]), height: Math.abs(y - from[1]),
      }));
    }
  }

  #up(event) {
    this.#pointers.delete(event.pointerId);
    if (!this.#pointers.size) this.#drag = null;
  }

  #clamped(window) {
    return clamped(window, this.#scene.picture);
  }

  #inside([x, y]) {
    const { width, height } = this.#scene?.picture ?? { width: 0, height: 0 };
    return x >= 0 && y >= 0 && x < width && y < height ? [Math.floor(x), Math.floor(y)] : null;
  }
}

/* The window in whole pixels within the input. */
export function clamped(window, { width, height }) {
  const size = (length, whole) => Math.round(Math.min(whole, Math.max(SMALLEST_WINDOW, length)));
  const [across, down] = [size(window.width, width), size(window.height, height)];
  const start = (place, length, whole) => Math.round(Math.min(whole - length, Math.max(0, place)));
  return { left: start(window.left, across, width), top: start(window.top, down, height), width: across, height: down };
}

export const zoomFactor = (direction) => ZOOM_STEP ** direction;

/* The photograph with its surroundings, and the layer over what the network saw. */
export function paint(pen, scene, { left, top, width, height, scale }, ratio = 1) {
  const { picture: { image, box }, drawn, layer, opacity, kind } = scene;
  const [across, down] = [width / box.width, height / box.height];
  const original = [left - across * box.left, top - down * box.top, across * image.width, down * image.height];
  const [whole, seen] = kind === "photo" || !layer ? [drawn.colour, drawn.seenColour] : [drawn.grey, drawn.seenGrey];
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "high";
  pen.globalAlpha = SURROUNDINGS;
  pen.drawImage(whole, ...original);
  pen.globalAlpha = 1;
  pen.save();
  pen.beginPath();
  pen.rect(left, top, width, height);
  pen.clip();
  // First what the network saw, which may have a border beyond the original; then the original's own pixels.
  pen.drawImage(seen, left, top, width, height);
  pen.drawImage(whole, ...original);
  if (layer && kind !== "photo") {
    pen.imageSmoothingEnabled = ratio * scale < PIXELATED;
    pen.globalAlpha = kind === "overlay" ? opacity : 1;
    pen.drawImage(layer, left, top, width, height);
  }
  pen.restore();
}

/* Twice, so that it shows on any ground. */
function outlined(pen, draw) {
  for (const [width, colour] of [[3, "rgb(0 0 0 / 75%)"], [1.25, "#fff"]]) {
    Object.assign(pen, { lineWidth: width, strokeStyle: colour });
    draw();
  }
}

function crosshair(pen, x, y) {
  pen.beginPath();
  for (const [across, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    pen.moveTo(x + 4 * across, y + 4 * down);
    pen.lineTo(x + 11 * across, y + 11 * down);
  }
  pen.stroke();
}
