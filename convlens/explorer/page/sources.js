/* Where pictures come from: files that are chosen, dropped or pasted, samples, and the camera. */
import { byId } from "./elements.js";
import { predictAndExplain } from "./explaining.js";
import { setFrame } from "./panes.js";
import { decode, prepare } from "./preprocess.js";
import { active, changed, context, report, sampleName, state } from "./state.js";
import { drawable, fitted } from "./viewer.js";

async function readPicture(blob, name) {
  const image = await decode(blob);
  const picture = { name, blob, image, ...prepare(image, context.site.preprocessing) };
  return { ...picture, drawn: await drawable(picture) };
}

export async function openPicture(pane, blob, name, sample = null) {
  const turn = pane.turn = Symbol(name);
  try {
    const picture = await readPicture(blob, name);
    if (pane.turn !== turn) return; // another was opened meanwhile
    byId("notice").hidden = true;
    // Two classes are of one picture.
    const panes = state.compare === "class" ? state.panes : [pane];
    const nothing = { scores: null, hidden: null, result: null, layer: null };
    for (const each of panes) Object.assign(each, { picture, sample, ...nothing });
    setFrame(fitted());
    changed();
    await Promise.all(panes.map(predictAndExplain));
  } catch (error) {
    report(error);
  }
}

export async function openSample(pane, place) {
  const { file } = context.site.samples[place];
  try {
    const response = await fetch(file);
    if (!response.ok) throw new Error(`${file} cannot be read (${response.status})`);
    await openPicture(pane, await response.blob(), sampleName({ file }), sampleName({ file }));
  } catch (error) {
    report(error);
  }
}

const openFile = (file) => openPicture(active(), file, file.name || "pasted.png");

/* `activate(pane)` makes the pane the one that a picture was dropped on. */
export function connectFiles(activate) {
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) openFile(target.files[0]);
    target.value = ""; // the same file may be chosen again
  });
  addEventListener("paste", ({ clipboardData }) => clipboardData.files[0] && openFile(clipboardData.files[0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop").hidden = true; // out of the window
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").hidden = true;
    const pane = state.panes.find(({ root }) => root.contains(event.target));
    if (pane) activate(pane);
    if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
  });
}

// ---- the camera

export function connectCamera() {
  byId("camera").addEventListener("click", openCamera);
  byId("shoot").addEventListener("click", () => shoot().catch(report));
  byId("camera-dialog").addEventListener("close", closeCamera);
}

async function openCamera() {
  const problem = byId("camera-problem");
  problem.hidden = true;
  byId("shoot").disabled = true;
  byId("camera-dialog").showModal();
  try {
    if (!navigator.mediaDevices) throw new Error("browsers give it to pages over https or on localhost alone");
    byId("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    byId("shoot").disabled = false;
  } catch (error) {
    problem.textContent = `No camera: ${error.message}`;
    problem.hidden = false;
  }
}

function closeCamera() {
  for (const track of byId("video").srcObject?.getTracks() ?? []) track.stop();
  byId("video").srcObject = null;
}

async function shoot() {
  const video = byId("video");
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  byId("camera-dialog").close();
  await openPicture(active(), await canvas.convertToBlob({ type: "image/png" }), "camera.png");
}
