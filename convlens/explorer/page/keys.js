/* The keyboard: a key for whatever the pointer can do. */
import { byId } from "./elements.js";
import { moveWindow, setHiding } from "./hiding.js";
import { moveProbe, setFrame, zoom } from "./panes.js";
import { active, state } from "./state.js";
import { focusUnits } from "./unit_list.js";
import { fitted, zoomFactor } from "./viewer.js";

const TEXT_FIELDS = ["text", "search", "number", "password", "select-one"];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PAN_PIXELS = 40;

const isCommand = (event) => event.ctrlKey || event.metaKey || event.altKey; // the browser's own

/* `act`: {view(name), stepMethod(by)}. */
export function connectKeys({ view, stepMethod }) {
  const keys = {
    1: () => view("overlay"),
    2: () => view("map"),
    3: () => view("photo"),
    o: () => byId("file").click(),
    h: toggleHiding,
    "/": () => byId("class-search").focus(),
    u: focusUnits,
    "[": () => stepMethod(-1),
    "]": () => stepMethod(1),
    "+": () => zoom(zoomFactor(1)),
    "=": () => zoom(zoomFactor(1)),
    "-": () => zoom(zoomFactor(-1)),
    0: () => setFrame(fitted()),
    "?": () => byId("help-dialog").showModal(),
    Escape: () => state.hiding && setHiding(false),
  };
  document.addEventListener("keydown", (event) => {
    const isTyping = TEXT_FIELDS.includes(event.target.type) || document.querySelector("dialog[open]");
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || isTyping || isCommand(event)) return;
    event.preventDefault();
    act();
  });
}

function toggleHiding() {
  setHiding(!state.hiding);
  if (state.hiding) active().canvas.focus();
}

/* On the picture itself. */
export function canvasKey(pane, event) {
  const arrow = ARROWS[event.key];
  if (!arrow || !pane.picture || isCommand(event)) return;
  event.preventDefault();
  const [across, down] = arrow;
  if (state.hiding) moveWindow(pane.picture, across, down, event.shiftKey);
  else if (event.shiftKey) pane.viewer.pan(-PAN_PIXELS * across, -PAN_PIXELS * down);
  else moveProbe(pane, across, down);
}
