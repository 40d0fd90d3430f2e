/* Runs exported graphs by onnxruntime-web, off the page's own thread. Each graph is loaded when it is first needed. */
import * as ort from "./runtime/ort.wasm.min.mjs";

const MOST_THREADS = 8; // beyond that, a picture at a time leaves threads idle
const HERE = new URL("./", import.meta.url);
const PROGRESS_BYTES = 1 << 18;
const TENSORS = {
  float32: (values, dims) => new ort.Tensor("float32", values, dims),
  int64: (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims),
};
const sessions = new Map();

ort.env.wasm.wasmPaths = new URL("runtime/", HERE).href;
// Threads share memory, which a browser allows on isolated pages only.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;

async function download({ file, bytes }, onProgress) {
  const response = await fetch(new URL(file, HERE));
  if (!response.ok) {
    throw new Error(`${file} cannot be read (${response.status}); write the folder again with convlens explore`);
  }
  const content = new Uint8Array(bytes);
  let loaded = 0;
  let reported = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (loaded + value.length <= bytes) content.set(value, loaded);
    loaded += value.length;
    if (loaded - reported < PROGRESS_BYTES) continue;
    reported = loaded;
    onProgress(loaded);
  }
  if (loaded !== bytes) {
    throw new Error(
      `${file} has ${loaded} bytes where site.json says ${bytes}; write the folder again with convlens explore`);
  }
  return content;
}

async function open(name, graph) {
  const report = (loaded) => postMessage({ progress: { graph: name, loaded, total: graph.bytes } });
  const content = await download(graph, report);
  report(graph.bytes);
  return ort.InferenceSession.create(content, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
}

/* By file: two graphs of a site may be one. */
function sessionOf(name, graph) {
  if (!sessions.has(graph.file)) {
    const opening = open(name, graph);
    sessions.set(graph.file, opening);
    opening.catch(() => sessions.delete(graph.file)); // the next call tries again
  }
  return sessions.get(graph.file);
}

function feedsOf(graph, { x, count, targets }) {
  const values = { float32: x, int64: targets };
  return Object.fromEntries(graph.inputs.map(({ name, dtype, shape }) => {
    if (!values[dtype]) throw new Error(`the page has nothing for the input ${name} of type ${dtype}`);
    return [name, TENSORS[dtype](values[dtype], [count, ...shape.slice(1)])];
  }));
}

async function run({ name, graph, ...inputs }) {
  const session = await sessionOf(name, graph);
  const feeds = feedsOf(graph, inputs);
  const results = await session.run(feeds);
  const outputs = {};
  for (const [output, tensor] of Object.entries(results)) {
    // A copy: the tensor's own memory goes back to the runtime.
    outputs[output] = { data: tensor.data.slice(), dims: [...tensor.dims] };
    tensor.dispose();
  }
  for (const tensor of Object.values(feeds)) tensor.dispose();
  return outputs;
}

let queue = Promise.resolve(); // a session runs one call at a time
onmessage = ({ data: { id, call } }) => {
  queue = queue.then(async () => {
    try {
      const outputs = await run(call);
      const memory = Object.values(outputs).map(({ data }) => data.buffer); // handed over, not copied
      postMessage({ id, outputs, threads: ort.env.wasm.numThreads }, memory);
    } catch (error) {
      postMessage({ id, error: error.message || String(error) });
    }
  });
};
