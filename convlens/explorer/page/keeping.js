/* What the visitor keeps of a pane: the picture as it is drawn, the numbers, and the command that gives the same. */
import { byId } from "./elements.js";
import { commandLine, npy, save } from "./files.js";
import { active, context, opacity, state, targetOf } from "./state.js";
import { paint } from "./viewer.js";

const LEAST_PNG_SIDE = 896;

export function command(pane) {
  const changed = state.options[state.method] ?? {};
  const target = targetOf(pane) ?? "";
  return commandLine(context.site.commands.explain, { file: pane.picture.name, method: state.method, target, changed });
}

const fileStem = (pane) => [pane.picture.name.replace(/\.\w+$/, ""), state.method, targetOf(pane)].join("-");

const say = (sentence) => { byId("kept").value = sentence; };

export async function savePng() {
  const pane = active();
  if (!pane.picture) return;
  const { picture, layer } = pane;
  const scale = Math.max(1, Math.ceil(LEAST_PNG_SIDE / Math.max(picture.width, picture.height)));
  const [width, height] = [scale * picture.width, scale * picture.height];
  const canvas = new OffscreenCanvas(width, height);
  const scene = { picture, drawn: picture.drawn, layer, opacity: opacity(), kind: state.view };
  paint(canvas.getContext("2d"), scene, { left: 0, top: 0, width, height, scale });
  save(await canvas.convertToBlob({ type: "image/png" }), `${fileStem(pane)}.png`);
  say("Saved as it is drawn.");
}

export function saveNpy() {
  const { result } = active();
  if (!result?.values) {
    say("There are no values to save yet.");
    return;
  }
  save(npy(result.values, result.dims), `${fileStem(active())}.npy`);
  say("Saved: raw values, float32, (C, H, W).");
}

export async function copyCommand() {
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    say("Copied.");
  } catch { // where the browser does not allow it
    getSelection().selectAllChildren(byId("command"));
    say("Selected; copy it by Ctrl+C.");
  }
}
