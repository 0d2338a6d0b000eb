// ONNX Runtime on one model: random input, T threads, S seconds; prints one JSON object like `quern model bench`.
// usage: node ort.mjs MODEL BATCH THREADS SECONDS NAME=1x3x224x224[:int64] …   (the first dimension is replaced by BATCH where it is 0)
//    or                                           NAME=@FILE.npy …             (f4 and i8)
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
const require = createRequire(process.env.PEERS + '/');
const ort = require('onnxruntime-node');

const [model, batch, threads, seconds] = [process.argv[2], ...process.argv.slice(3, 6).map(Number)];
const start = performance.now();
const session = await ort.InferenceSession.create(model, { intraOpNumThreads: threads, interOpNumThreads: 1, executionMode: 'sequential', graphOptimizationLevel: 'all' });
const loadMs = performance.now() - start;
const feeds = {};

function fromNpy(path) {
  const file = readFileSync(path);
  const headerLength = file.readUInt16LE(8);
  const header = file.toString('latin1', 10, 10 + headerLength);
  const dims = header.match(/'shape': \(([^)]*)\)/)[1].split(',').filter((d) => d.trim()).map(Number);
  const bytes = file.buffer.slice(file.byteOffset + 10 + headerLength, file.byteOffset + file.length);
  return header.includes("'<i8'") ? new ort.Tensor('int64', new BigInt64Array(bytes), dims) : new ort.Tensor('float32', new Float32Array(bytes), dims);
}

for (const word of process.argv.slice(6)) {
  const [name, rest] = word.split('=');
  if (rest[0] === '@') {
    feeds[name] = fromNpy(rest.slice(1));
    continue;
  }
  const [shape, type = 'float32'] = rest.split(':');
  const dims = shape.split('x').map(Number).map((d) => d || batch);
  const n = dims.reduce((a, b) => a * b, 1);
  feeds[name] = type === 'int64' ? new ort.Tensor(type, BigInt64Array.from({ length: n }, (_, i) => BigInt(i % 100)), dims)
    : new ort.Tensor(type, Float32Array.from({ length: n }, () => Math.random() * 2 - 1), dims);
}
for (let i = 0; i < 3; i++) await session.run(feeds);
const times = [];
const end = performance.now() + seconds * 1000;
while (performance.now() < end || times.length < 5) {
  const t = performance.now();
  await session.run(feeds);
  times.push(performance.now() - t);
}
times.sort((a, b) => a - b);
const at = (q) => times[Math.min(times.length - 1, Math.floor(q * times.length))];
console.log(JSON.stringify({ model, batch, threads, items_per_s: batch / times[0] * 1000, items_per_s_median: batch / at(0.5) * 1000, p50_ms: at(0.5), p99_ms: at(0.99), load_ms: loadMs }));
