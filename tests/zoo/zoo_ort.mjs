// One run of a model by ONNX Runtime on NPY files, its outputs as NPY files: what zoo.py compares with.
// usage: node zoo_ort.mjs PEERS MODEL IN_FOLDER OUT_FOLDER      (IN_FOLDER/<input>.npy; PEERS holds node_modules/onnxruntime-node)
import { createRequire } from 'node:module';
import { readFileSync, writeFileSync, existsSync } from 'node:fs';
const [peers, model, inFolder, outFolder] = process.argv.slice(2);
const ort = createRequire(peers + '/')('onnxruntime-node');

const TYPES = { '<f4': ['float32', Float32Array], '<f8': ['float64', Float64Array], '<i8': ['int64', BigInt64Array], '<i4': ['int32', Int32Array],
  '|b1': ['bool', Uint8Array], '|u1': ['uint8', Uint8Array] };
const DESCR = Object.fromEntries(Object.entries(TYPES).map(([descr, [name]]) => [name, descr]));

function readNpy(path) {
  const b = readFileSync(path);
  const end = 10 + b.readUInt16LE(8);
  const head = b.toString('latin1', 10, end);
  const [name, Kind] = TYPES[/'descr': '([^']+)'/.exec(head)[1]];
  const dims = /'shape': \(([^)]*)\)/.exec(head)[1].split(',').map((s) => s.trim()).filter(Boolean).map(Number);
  return new ort.Tensor(name, new Kind(b.buffer.slice(b.byteOffset + end, b.byteOffset + b.length)), dims);
}

function writeNpy(path, t) {
  const shape = t.dims.length === 1 ? `(${t.dims[0]},)` : `(${t.dims.join(', ')})`;
  let head = `{'descr': '${DESCR[t.type]}', 'fortran_order': False, 'shape': ${shape}, }`;
  head += ' '.repeat((64 - (11 + head.length) % 64) % 64) + '\n';
  const start = Buffer.alloc(10);
  start.write('\x93NUMPY\x01\x00', 'latin1');
  start.writeUInt16LE(head.length, 8);
  writeFileSync(path, Buffer.concat([start, Buffer.from(head, 'latin1'), Buffer.from(t.data.buffer, t.data.byteOffset, t.data.byteLength)]));
}

const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3 });
const feeds = {};
for (const name of session.inputNames) if (existsSync(`${inFolder}/${name}.npy`)) feeds[name] = readNpy(`${inFolder}/${name}.npy`);
const out = await session.run(feeds);
for (const name of session.outputNames) writeNpy(`${outFolder}/${name.replace(/[^A-Za-z0-9_.-]/g, '_')}.npy`, out[name]);
