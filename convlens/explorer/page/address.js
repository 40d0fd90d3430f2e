/* The state of the page in its address, after the #. A picture of one's own cannot be there, a sample can. */
const VIEWS = ["overlay", "map", "photo"];
const UNIT_ORDERS = ["share", "activation"];

/* `state` as state.js keeps it; what is as at the start is left out. */
export function written(state) {
  const parts = new URLSearchParams();
  parts.set("method", state.method);
  state.panes.forEach((pane, n) => {
    const suffix = n ? "2" : "";
    if (pane.sample) parts.set(`sample${suffix}`, pane.sample);
    if (pane.target !== null) parts.set(`class${suffix}`, pane.target);
  });
  if (state.panes.length > 1) parts.set("compare", state.compare);
  if (state.view !== VIEWS[0]) parts.set("view", state.view);
  if (state.opacity !== null) parts.set("opacity", state.opacity);
  if (state.smooth !== null) parts.set("smooth", state.smooth);
  if (state.shared) parts.set("shared", "1");
  if (state.onServer) parts.set("engine", "server");
  if (state.units !== null) parts.set("units", state.units);
  if (state.unitOrder !== UNIT_ORDERS[0]) parts.set("order", state.unitOrder);
  if (state.hiding && state.window) {
    const { left, top, width, height } = state.window;
    parts.set("hide", [left, top, width, height].join(","));
  }
  for (const [method, options] of Object.entries(state.options)) {
    for (const [name, value] of Object.entries(options)) {
      parts.append("set", `${method}.${name}=${JSON.stringify(value)}`);
    }
  }
  return `#${parts}`;
}

/* What an address says; null, or an empty object, for what it does not say or what makes no sense. */
export function read(address) {
  const parts = new URLSearchParams(address.replace(/^#/, ""));
  const wholeNumber = (name) => (/^\d+$/.test(parts.get(name) ?? "") ? Number(parts.get(name)) : null);
  const within = (name, high) => {
    const value = parts.has(name) ? Number(parts.get(name)) : NaN;
    return value >= 0 && value <= high ? value : null;
  };
  const [left, top, width, height] = (parts.get("hide") ?? "").split(",").map(Number);
  return {
    method: parts.get("method"),
    samples: [parts.get("sample"), parts.get("sample2")],
    targets: [wholeNumber("class"), wholeNumber("class2")],
    compare: ["class", "picture"].includes(parts.get("compare")) ? parts.get("compare") : null,
    view: VIEWS.includes(parts.get("view")) ? parts.get("view") : VIEWS[0],
    opacity: within("opacity", 100),
    smooth: within("smooth", 8),
    shared: parts.get("shared") === "1",
    onServer: parts.get("engine") === "server",
    units: parts.get("units"),
    unitOrder: UNIT_ORDERS.includes(parts.get("order")) ? parts.get("order") : UNIT_ORDERS[0],
    window: left >= 0 && top >= 0 && width > 0 && height > 0 ? { left, top, width, height } : null,
    options: optionsOf(parts.getAll("set")),
  };
}

function optionsOf(settings) {
  const options = {};
  for (const setting of settings) {
    const [, method, name, value] = /^(\w+)\.(\w+)=(.*)$/.exec(setting) ?? [];
    if (!method) continue;
    try {
      (options[method] ??= {})[name] = JSON.parse(value);
    } catch {
      continue; // an address cut short on its way
    }
  }
  return options;
}
