/* Calls the explorer's modules for tests in Python: frames over stdin and stdout.

   A frame is the length of its JSON in 4 bytes (little endian), the JSON, and the bytes of the arrays that it names
   {"$array": type, "bytes": n}, one after another. A call is {"module", "function", "arguments"}; the answer is
   {"result"} or {"error"}. Where a call needs the session, {"run": [graph, x, count, targets]} is asked and answered in
   between, and a session of {"$session": true} in the arguments stands for it; {"$partials": true} for a callback
   whose arguments come back with the result. */
import { readSync, writeSync } from "node:fs";
import { pathToFileURL } from "node:url";

const TYPES = { Float32Array, Float64Array, Uint8ClampedArray, Uint8Array, Int32Array };
const folder = process.argv[2];

function readBytes(length) {
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const read = readSync(0, bytes, done, length - done);
    if (!read) process.exit(0); // the test has ended
    done += read;
  }
  return bytes;
}

function readFrame(revive) {
  const length = readBytes(4).readUInt32LE();
  const header = JSON.parse(readBytes(length).toString());
  const unpacked = (value) => {
    if (value === null || typeof value !== "object") return value;
    if (value.$array) return new TYPES[value.$array](new Uint8Array(readBytes(value.bytes)).buffer);
    if (value.$session || value.$partials) return revive(value);
    if (Array.isArray(value)) return value.map(unpacked);
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, unpacked(part)]));
  };
  return unpacked(header);
}

function writeFrame(message) {
  const arrays = [];
  const packed = (value) => {
    if (ArrayBuffer.isView(value)) {
      arrays.push(Buffer.from(value.buffer, value.byteOffset, value.byteLength));
      return { $array: value.constructor.name, bytes: value.byteLength };
    }
    if (value === null || typeof value !== "object") return value;
    if (Array.isArray(value)) return value.map(packed);
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, packed(part)]));
  };
  const header = Buffer.from(JSON.stringify(packed(message)));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(header.length);
  for (const bytes of [length, header, ...arrays]) writeAll(bytes);
}

function writeAll(bytes) {
  for (let done = 0; done < bytes.length; ) done += writeSync(1, bytes, done);
}

const session = {
  run: async (graph, x, count, targets) => {
    writeFrame({ run: [graph, x, count, targets ?? null] });
    return readFrame();
  },
};

for (;;) {
  const partials = [];
  const onPartial = async (partial) => partials.push(structuredClone(partial));
  const call = readFrame((mark) => (mark.$session ? session : onPartial));
  try {
    const module = await import(pathToFileURL(`${folder}/${call.module}.js`));
    const result = await module[call.function](...call.arguments);
    writeFrame({ result: result ?? null, partials });
  } catch (error) {
    writeFrame({ error: error.message });
  }
}
