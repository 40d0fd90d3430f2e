/* Has the engine predict and explain, keeps the latest results, and stops what is not wanted any more. */
import { hideInAll } from "./hiding.js";
import { setResult, show, working } from "./panes.js";
import { changed, context, methodNow, report, state, targetOf } from "./state.js";

const NEIGHBOURS = "neighbours";
const SHOWN_NEIGHBOURS = 10;
const KEPT_RESULTS = 24;
const STALE_MS = 150; // for so long the map before stays in sight: most are there by then, and nothing flickers
const results = new Map(); // by what decides them, the latest last
const numbers = new WeakMap(); // of pictures
let count = 0;

export async function predictAndExplain(pane) {
  const { picture } = pane;
  show(pane);
  try {
    working(pane, "Predicting");
    const scores = await kept(keyOf(pane, "predict", null), () => context.engine.predict(picture));
    if (pane.picture !== picture) return;
    pane.scores = scores;
    // The second of two classes is the second best, unless one was chosen.
    const isSecond = state.compare === "class" && pane === state.panes[1];
    if (isSecond && pane.target === null) pane.target = otherClass(scores, targetOf(state.panes[0]));
    changed();
    hideInAll();
    await explainPane(pane);
  } catch (error) {
    working(pane, "");
    report(error);
  }
}

export const otherClass = (scores, index) => scores.top(2).find((each) => each !== index) ?? null;

export function explainAll() {
  for (const pane of state.panes) explain(pane);
}

export function explain(pane) {
  explainPane(pane).catch((error) => {
    working(pane, "");
    report(error);
  });
}

async function explainPane(pane) {
  pane.job?.abort();
  const method = methodNow();
  if (!pane.scores || method.missing) {
    setResult(pane, null);
    working(pane, "");
    return;
  }
  const { signal } = pane.job = new AbortController();
  const target = targetOf(pane);
  const key = keyOf(pane, method.name, target);
  pane.result = null; // nobody is to save the one before as this one
  const stale = setTimeout(() => !signal.aborted && !pane.result && setResult(pane, null), STALE_MS);
  try {
    working(pane, results.has(key) ? "" : method.title);
    const result = await kept(key, () => compute(pane, method, target, signal));
    if (!signal.aborted) setResult(pane, result);
  } catch (error) {
    if (signal.aborted) return;
    setResult(pane, null);
    throw error;
  } finally {
    clearTimeout(stale);
    if (!signal.aborted) working(pane, "");
  }
}

async function compute(pane, method, target, signal) {
  const { engine } = context;
  if (method.name === NEIGHBOURS) {
    return { neighbours: await engine.neighbours(pane.picture, SHOWN_NEIGHBOURS, signal) };
  }
  const options = { ...method.options, ...state.options[method.name] };
  const onPartial = (partial) => {
    signal.throwIfAborted(); // the rest is not wanted any more
    if (partial.values) setResult(pane, { ...partial, drawing: method.drawing });
    working(pane, method.title, partial);
  };
  return engine.explain(pane.picture, method.name, target, options, onPartial, signal);
}

function keyOf({ picture }, method, target) {
  if (!numbers.has(picture)) numbers.set(picture, count += 1);
  return JSON.stringify([context.engine.place, numbers.get(picture), method, target, state.options[method] ?? {}]);
}

async function kept(key, make) {
  const value = results.get(key) ?? await make();
  results.delete(key);
  results.set(key, value);
  if (results.size > KEPT_RESULTS) results.delete(results.keys().next().value);
  return value;
}
