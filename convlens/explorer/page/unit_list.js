/* The list of a picture's strongest units, each a link to its channel's page in the atlas. It is computed only while it
   is open: its graph is one more to load. */
import { byId, element, number, text } from "./elements.js";
import { active, changed, context, onChange, report, state } from "./state.js";
import { strongestUnits } from "./units.js";

const SHOWN_UNITS = 12;
const outputs = new WeakMap(); // of pictures: what all layers of the atlas give, promised
let shown = {}; // what the list was made of
let isAwaited = false; // its first link, by whoever asked for the list by a key

/* `engine()` gives the one that runs graphs in this page, which the list needs wherever the network runs. */
export function connectUnits(engine) {
  const { atlas, graphs } = context.site;
  byId("units").hidden = byId("units-key").hidden = !atlas || !graphs.features;
  if (byId("units").hidden) return;
  byId("units-atlas").href = atlas.page;
  byId("units-layer").replaceChildren(...atlas.layers.map(({ name }) => element("option", { value: name }, name)));
  if (state.units !== null) byId("units").open = true;
  byId("units").addEventListener("toggle", () => choose(byId("units").open ? layerNow() : null));
  byId("units-layer").addEventListener("change", ({ target }) => choose(target.value));
  byId("units-order").addEventListener("change", ({ target }) => {
    state.unitOrder = target.value;
    changed();
  });
  onChange(() => update(engine).catch(report));
}

/* For the keyboard: opens the list and goes to its first link, once that is there. */
export function focusUnits() {
  if (byId("units").hidden) return;
  byId("units").open = true;
  const first = byId("units-list").querySelector("a");
  isAwaited = !first;
  (first ?? byId("units").querySelector("summary")).focus();
}

function choose(layer) {
  if (layer === state.units) return;
  state.units = layer;
  changed();
}

const layerNow = () => {
  const names = context.site.atlas.layers.map(({ name }) => name);
  return names.includes(state.units) ? state.units : names[0];
};

async function update(engine) {
  const { picture, scores } = active();
  if (state.units === null || !picture || !scores) return; // the prediction comes first
  const wanted = { picture, layer: layerNow(), order: state.unitOrder };
  if (Object.keys(wanted).every((name) => wanted[name] === shown[name])) return;
  shown = wanted;
  byId("units-layer").value = wanted.layer;
  byId("units-order").value = wanted.order;
  byId("units-list").setAttribute("aria-busy", "true");
  try {
    const given = await outputsOf(picture, engine);
    if (shown === wanted) show(wanted, given[wanted.layer]);
  } catch (error) {
    shown = {}; // the next change tries again
    throw error;
  } finally {
    byId("units-list").removeAttribute("aria-busy");
  }
}

function outputsOf(picture, engine) {
  if (!outputs.has(picture)) {
    const promised = engine().features(picture);
    promised.catch(() => outputs.delete(picture));
    outputs.set(picture, promised);
  }
  return outputs.get(picture);
}

function show({ layer, order, picture }, output) {
  const { images, layers } = context.site.atlas;
  const { channels } = layers.find(({ name }) => name === layer);
  const units = strongestUnits(channels, output, SHOWN_UNITS, order);
  byId("units-of").replaceChildren(`of ${channels.length} channels, for `, text(picture.name));
  byId("units-list").replaceChildren(...units.map((unit) => element("li", {}, unitLink(layer, unit, images))));
  if (isAwaited) focusUnits();
}

function unitLink(layer, { channel, activation, share, page, picture }, images) {
  const image = element("img", { src: picture, alt: "", width: 48, height: 48, decoding: "async" });
  const against = share === null ? `no image of the atlas excites it` : `${Math.round(100 * share)} % of the strongest`;
  const title = `Channel ${channel} of ${layer}: largest activation ${number(activation, 4)}; the strongest of the `
    + `atlas's ${images} images has 100 %. Opens its page.`;
  return element("a", { href: page, target: "_blank", rel: "noopener", "data-channel": channel, title }, image,
    element("span", { class: "label" }, `Channel ${channel}`),
    element("data", { value: activation }, number(activation)), element("span", { class: "quiet" }, against));
}
