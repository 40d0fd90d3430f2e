/* The two places where a network can run, behind one interface:
     methods() -> the site's methods, `missing` null where this engine has them
     predict(picture, signal) -> Scores
     explain(picture, method, target, options, onPartial, signal) -> {values, dims, drawing, cells, meta}
     hide(picture, window, signal) -> Scores, with a window {left, top, width, height} of the input hidden
     neighbours(picture, count, signal) -> [{id, label, distance, thumbnail}]
   A picture is {name, blob, image, x, display, width, height, box}, as preprocess.js makes it. */
import { explain, features, hideWindow, predict, probabilities } from "./methods.js";
import { nearest } from "./neighbours.js";
import { Scores } from "./scores.js";

const EMBEDDING = "embedding";
const NEIGHBOURS = "neighbours";
const UNLOADED = "the files in runtime/ cannot be loaded; write the folder again with convlens explore";

export class BrowserEngine {
  #site;
  #worker;
  #waiting = new Map();
  #calls = 0;
  #gallery = null;
  #failure = null; // of the worker as a whole, after which it answers nothing

  /* `onProgress({graph, loaded, total})` follows the loading of graphs. */
  constructor(site, { onProgress }) {
    this.#site = site;
    this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => (data.progress ? onProgress(data.progress) : this.#settle(data));
    this.#worker.onerror = (event) => this.#fail(event.message || UNLOADED);
  }

  place = "in this page";
  threads = null;

  methods() {
    return this.#site.methods;
  }

  async predict(picture, signal) {
    return this.#scores(await predict(this.#session(signal), this.#site, picture.x));
  }

  async explain(picture, method, target, options, onPartial, signal) {
    return explain(method, this.#session(signal), this.#site, picture.x, target, options, onPartial);
  }

  async hide(picture, window, signal) {
    return this.#scores(await hideWindow(this.#session(signal), this.#site, picture.x, window));
  }

  async neighbours(picture, count, signal) {
    this.#gallery ??= fetchFloats(this.#site.gallery.vectors);
    const { embedding_ND } = await this.#session(signal).run(EMBEDDING, picture.x, 1, null);
    return nearest(this.#site.gallery, await this.#gallery, embedding_ND.data, count);
  }

  /* What the layers of the atlas give, by name: {data, dims}. */
  async features(picture, signal) {
    return features(this.#session(signal), this.#site, picture.x);
  }

  #scores(logits) {
    return Scores.ofArrays(logits, probabilities(logits, this.#site.model.activation));
  }

  /* What methods.js runs graphs with; nothing runs after the signal. */
  #session(signal) {
    const run = (name, x, count, targets) => {
      signal?.throwIfAborted();
      const graph = this.#site.graphs[name];
      if (!graph) throw new Error(`the graph ${name} is not in this folder; export it with convlens explore`);
      return this.#call({ name, graph, x, count, targets });
    };
    return { run: async (...call) => run(...call) };
  }

  #call(call) {
    if (this.#failure) return Promise.reject(new Error(this.#failure));
    return new Promise((resolve, reject) => {
      this.#calls += 1;
      this.#waiting.set(this.#calls, { resolve, reject });
      this.#worker.postMessage({ id: this.#calls, call });
    });
  }

  #settle({ id, outputs, error, threads }) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    this.threads = threads ?? this.threads;
    if (error) reject(new Error(error));
    else resolve(outputs);
  }

  #fail(message) {
    this.#failure = message;
    for (const { reject } of this.#waiting.values()) reject(new Error(message));
    this.#waiting.clear();
  }
}

async function fetchFloats(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address} cannot be read (${response.status})`);
  return new Float32Array(await response.arrayBuffer());
}

// ---- a server

const MOST_CLASSES = 100; // that a server names
const DEFAULT_NAME = "convlens";
const CELLS = "map_NCHW"; // of class activation maps, before they are stretched

export class ServerEngine {
  #site;
  #base;
  #name;
  token = "";

  /* `site.server` is the address of the server, or of one of its models: …/predictions/NAME. */
  constructor(site) {
    this.#site = site;
    const { href } = new URL(site.server, location.href);
    const [, base, name] = /^(.*?)(?:\/(?:predictions|explanations)\/([^/]+))?\/?$/.exec(href);
    this.#base = base;
    this.#name = name ?? DEFAULT_NAME;
  }

  get place() {
    return `on ${new URL(this.#base).host}`;
  }

  methods() {
    return this.#site.methods.map((method) => ({ ...method, missing: null }));
  }

  async predict(picture, signal) {
    return this.#predict(picture.blob, signal);
  }

  async explain(picture, method, target, options, onPartial, signal) {
    const reply = await this.#explanation(picture, { method, target, options }, signal);
    const { drawing } = this.#site.methods.find(({ name }) => name === method);
    const { values, dims } = decodeArray(reply.array);
    const stretched = dims[0] === 1 ? reply.extras?.[CELLS] : null;
    const meta = { ...reply.meta, options: reply.options, score: reply.target_score };
    return { values, dims, drawing, cells: stretched ? decodeArray(stretched) : null, meta };
  }

  /* In the original picture: the server prepares what it gets, so a window of its input cannot be sent. */
  async hide(picture, window, signal) {
    return this.#predict(await hiddenInOriginal(picture, window, this.#site.preprocessing.mean), signal);
  }

  async neighbours(picture, count, signal) {
    const { neighbours } = await this.#explanation(picture, { method: NEIGHBOURS, options: { k: count } }, signal);
    return neighbours.map(({ thumbnail, ...rest }) => ({
      ...rest, thumbnail: thumbnail ? `data:${thumbnail.media_type};base64,${thumbnail.data}` : null,
    }));
  }

  /* A browser hides from a page whether another origin's server is not there or does not allow the page. */
  #whyNot() {
    const here = location.origin;
    if (new URL(this.#base).origin === here) return "";
    const proxy = `start the proxy of deploy/proxy in front of it with PROXY_ORIGINS=${here}`;
    const remedy = this.token
      ? `${proxy}; TorchServe by itself answers no browser of another origin that has a token`
      : `${proxy}, or, for a server without tokens, set cors_allowed_origin=${here} in TorchServe's config.properties`;
    return `. If it runs, it does not allow this page: ${remedy}.`;
  }

  async #predict(blob, signal) {
    const topk = Math.max(1, Math.min(MOST_CLASSES, this.#site.model.labels.length));
    const { predictions } = await this.#post("predictions", blob, { topk }, signal);
    return new Scores(predictions.map(({ index, probability, logit }) => [index, { probability, logit }]));
  }

  async #explanation(picture, method, signal) {
    const { target, ...rest } = method;
    const methods = [target === undefined || target === null ? rest : method];
    const params = { methods, output: ["array"], dtype: "<f4", topk: 1 };
    const { explanations } = await this.#post("explanations", picture.blob, params, signal);
    return explanations[0];
  }

  async #post(path, blob, params, signal) {
    const form = new FormData();
    form.append("data", blob, "picture");
    form.append("params", JSON.stringify(params));
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const options = { method: "POST", body: form, headers, signal };
    const response = await fetch(`${this.#base}/${path}/${this.#name}`, options).catch((error) => {
      signal?.throwIfAborted();
      throw new Error(`the server ${this.#base} does not answer: ${error.message}${this.#whyNot()}`);
    });
    const reply = await response.json().catch(() => ({ message: `it answers ${response.status} without JSON` }));
    if (!response.ok || !reply.predictions) {
      throw new ServerRefusal(reply.message ?? `the server answers ${response.status}`, response.status);
    }
    return reply;
  }
}

export class ServerRefusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function decodeArray({ data, shape }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return { values: new Float32Array(bytes.buffer), dims: shape };
}

async function hiddenInOriginal({ image, box, width, height }, window, mean) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  const pen = canvas.getContext("2d");
  pen.putImageData(new ImageData(image.data, image.width, image.height), 0, 0);
  const [red, green, blue] = mean.length === 1 ? [mean[0], mean[0], mean[0]] : mean;
  pen.fillStyle = `rgb(${[red, green, blue].map((part) => Math.round(255 * part)).join(" ")})`;
  const across = box.width / width;
  const down = box.height / height;
  const [left, top] = [box.left + across * window.left, box.top + down * window.top];
  pen.fillRect(left, top, across * window.width, down * window.height);
  return canvas.convertToBlob({ type: "image/png" });
}
