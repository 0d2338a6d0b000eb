// BullMQ + ONNX Runtime: images through a queue. The producer adds N jobs with a base64 float image each; the worker (same process,
// as its users write it) decodes, runs the model with 2 threads in batches of one, returns the best class. Prints one JSON object.
// usage: node bullmq_ort.mjs SOCKET MODEL INPUT JOBS CONCURRENCY
import { createRequire } from 'node:module';
const require = createRequire(process.env.PEERS + '/');
const { Queue, Worker } = require('bullmq');
const Redis = require('ioredis');
const ort = require('onnxruntime-node');

const [socket, model, input] = process.argv.slice(2, 5);
const [jobs, concurrency] = process.argv.slice(5).map(Number);
const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 2, interOpNumThreads: 1 });
const dims = [1, 3, 224, 224];
const pixels = Float32Array.from({ length: 3 * 224 * 224 }, (_, i) => Math.sin(i));
const image = Buffer.from(pixels.buffer).toString('base64');
const connect = () => new Redis({ path: socket, maxRetriesPerRequest: null });
const connections = [connect(), connect()];
const queue = new Queue('images', { connection: connections[0] });
const t0 = performance.now();
let done = 0;
let worker;
const finished = new Promise((resolve) => {
  worker = new Worker('images', async (job) => {
    const bytes = Buffer.from(job.data.image, 'base64');
    const tensor = new ort.Tensor('float32', new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)), dims);
    const scores = Object.values(await session.run({ [input]: tensor }))[0].data;
    return { best: scores.indexOf(Math.max(...scores)) };
  }, { connection: connections[1], concurrency });
  worker.on('completed', () => { if (++done === jobs) resolve(); });
});
for (let i = 0; i < jobs; i += 20) {
  await queue.addBulk(Array.from({ length: Math.min(20, jobs - i) }, () => ({ name: 'image', data: { image }, opts: { removeOnComplete: { age: 3600 } } })));
}
await finished;
const seconds = (performance.now() - t0) / 1000;
console.log(JSON.stringify({ jobs, concurrency, items_per_s: jobs / seconds }));
await worker.close();
await queue.close();
connections.forEach((c) => c.disconnect());
process.exit(0);
