/* The explanation methods, computed from what exported graphs return: the numbers of convlens/explain.

   A session runs graphs as graph_runs.js says; `site` is site.json. Arrays of maps are row by row. */
import { activationMap, gradCam, gradCamPlusPlus, guidedGradCam, hiresCam, layerCam } from "./activation_maps.js";
import { gradientOf, inputTimesGradient, integratedGradients, smoothGrad } from "./gradients.js";
import { predict, requireFinite, topClasses } from "./graph_runs.js";
import { occlusion } from "./occlusion.js";

export { features, predict, probabilities, topClasses } from "./graph_runs.js";
export { hideWindow } from "./occlusion.js";

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
