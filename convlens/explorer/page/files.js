/* What the page gives to keep: arrays as NumPy files, canvases as PNG, and the command line that gives the same. */

const MAGIC = [0x93, ...new TextEncoder().encode("NUMPY"), 1, 0];
const ALIGNMENT = 64; // of the data, as numpy.save writes it

/* A .npy file (format 1.0) of float32 in C order. */
export function npy(values, dims) {
  const shape = dims.length === 1 ? `${dims[0]},` : dims.join(", ");
  const text = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape}), }`;
  const length = Math.ceil((MAGIC.length + 2 + text.length + 1) / ALIGNMENT) * ALIGNMENT;
  const header = new Uint8Array(length).fill(0x20);
  header.set(MAGIC);
  new DataView(header.buffer).setUint16(MAGIC.length, length - MAGIC.length - 2, true);
  header.set(new TextEncoder().encode(text), MAGIC.length + 2);
  header[length - 1] = 0x0a;
  return new Blob([header, littleEndian(values)], { type: "application/octet-stream" });
}

function littleEndian(values) {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, n) => view.setFloat32(4 * n, value, true));
  return view.buffer;
}

export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // the browser may read it later
}

/* `template` as in site.json; `changed`: the options that are not the method's own defaults. */
export function commandLine(template, { file, method, target, changed }) {
  const values = { file: quoted(file), method, target: quoted(String(target)) };
  const command = template.replace(/\{(file|method|target)\}/g, (_, name) => values[name]);
  const settings = Object.entries(changed).map(([name, value]) => ` --set ${quoted(`${method}.${name}=${value}`)}`);
  return command + settings.join("");
}

/* As a POSIX shell reads it. */
const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
