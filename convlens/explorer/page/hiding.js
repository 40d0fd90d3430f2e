/* Hiding by hand: a window over the picture, and what every score does. */
import { show } from "./panes.js";
import { active, changed, context, report, state } from "./state.js";
import { clamped } from "./viewer.js";

const FIRST_SHARE = 1 / 7; // of the input's side: 32 of 224 pixels, as occlusion's own window
const STEP = 4; // pixels

export function setHiding(isHiding) {
  state.hiding = isHiding;
  const { picture } = active();
  if (isHiding && picture) state.window = clamped(state.window ?? middle(picture), picture);
  for (const pane of state.panes) pane.hidden = null;
  state.panes.forEach(show);
  changed();
  hideInAll();
}

function middle({ width, height }) {
  const side = FIRST_SHARE * Math.min(width, height);
  return { left: (width - side) / 2, top: (height - side) / 2, width: side, height: side };
}

export function setWindow(window) {
  state.window = window;
  state.panes.forEach(show);
  hideInAll();
}

export function moveWindow(picture, across, down, isResized) {
  const { left, top, width, height } = state.window;
  const [x, y] = [STEP * across, STEP * down];
  const moved = isResized
    ? { left, top, width: width + x, height: height + y } : { left: left + x, top: top + y, width, height };
  setWindow(clamped(moved, picture));
}

export function hideInAll() {
  for (const pane of state.panes) hideIn(pane).catch(report);
}

/* One at a time for each pane, the latest window last: those in between are not asked for. */
async function hideIn(pane) {
  if (!state.hiding || !pane.picture || !pane.scores || !state.window) return;
  pane.wanted = { window: state.window, picture: pane.picture };
  if (pane.isHiding) return;
  pane.isHiding = true;
  try {
    while (pane.wanted && state.hiding) {
      const { window, picture } = pane.wanted;
      pane.wanted = null;
      const scores = await context.engine.hide(picture, window);
      if (!state.hiding || pane.picture !== picture) continue;
      pane.hidden = scores;
      if (pane === active()) changed();
    }
  } finally {
    pane.isHiding = false;
  }
}
