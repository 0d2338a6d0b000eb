// BullMQ + ONNX Runtime: images through a queue, as e2e.py does it for quern: a producer in a process of its own keeps up to 64 jobs
// waiting, the worker decodes, runs the model and returns the best class. Prints one JSON object.
// usage: node bullmq_ort.mjs SOCKET MODEL INPUT JOBS FORM CONCURRENCY THREADS [JPEG]
// FORM: b64 (base64 floats in the job), redis (raw floats under a key), jpeg (the file in base64; decoded by sharp). THREADS: of a run.
import { fork } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
const require = createRequire(process.env.PEERS + '/');
const { Queue, Worker } = require('bullmq');
const Redis = require('ioredis');

const [socket, model, input, jobs_, form, concurrency, threads, jpeg] = process.argv.slice(2, 10);
const jobs = Number(jobs_);
const connect = () => new Redis({ path: socket, maxRetriesPerRequest: null });
const AHEAD = 64, STEP = 8, WARM = 8;

async function produce() {
  const pixels = Buffer.from(Float32Array.from({ length: 3 * 224 * 224 }, (_, i) => Math.sin(i)).buffer);
  const connection = connect();
  const queue = new Queue('images', { connection });
  if (form === 'redis') await connection.set('image', pixels);
  const data = form === 'redis' ? { key: 'image' } : { image: (form === 'jpeg' ? readFileSync(jpeg) : pixels).toString('base64') };
  const one = { name: 'image', data, opts: { removeOnComplete: { age: 3600 } } };
  let added = 0, done = 0, busy = false;
  const more = async () => {
    if (busy) return;
    busy = true;
    while (added < jobs + WARM && added - done < AHEAD) {
      await queue.addBulk(Array(STEP).fill(one));
      added += STEP;
    }
    busy = false;
  };
  process.on('message', (n) => { done = n; more(); });
  await more();
}

async function serve() {
  const ort = require('onnxruntime-node');
  const sharp = form === 'jpeg' ? require('sharp') : null;
  const session = await ort.InferenceSession.create(model, { intraOpNumThreads: Number(threads), interOpNumThreads: 1 });
  const dims = [1, 3, 224, 224], plane = 224 * 224;
  const mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225];
  const connections = [connect(), connect()];
  const floats = (b) => new Float32Array(b.buffer.slice(b.byteOffset, b.byteOffset + b.length));
  async function pixels(data) {
    if (form === 'redis') return floats(await connections[1].getBuffer(data.key));
    const bytes = Buffer.from(data.image, 'base64');
    if (form === 'b64') return floats(bytes);
    const rgb = await sharp(bytes).resize(256, 256, { fit: 'outside', kernel: 'linear' }).removeAlpha().raw().toBuffer({ resolveWithObject: true });
    const { width, height } = rgb.info, x0 = (width - 224) >> 1, y0 = (height - 224) >> 1, out = new Float32Array(3 * plane);
    for (let c = 0; c < 3; c++) {
      const scale = 1 / (255 * std[c]), shift = mean[c] / std[c];
      for (let y = 0; y < 224; y++) {
        for (let x = 0, at = ((y + y0) * width + x0) * 3 + c, to = c * plane + y * 224; x < 224; x++, at += 3) out[to + x] = rgb.data[at] * scale - shift;
      }
    }
    return out;
  }
  let done = 0, start;
  const producer = fork(process.argv[1], process.argv.slice(2), { env: { ...process.env, ROLE: 'producer' } });
  const worker = new Worker('images', async (job) => {
    const scores = Object.values(await session.run({ [input]: new ort.Tensor('float32', await pixels(job.data), dims) }))[0].data;
    return { best: scores.indexOf(Math.max(...scores)) };
  }, { connection: connections[0], concurrency: Number(concurrency) });
  await new Promise((resolve) => {
    worker.on('completed', () => {
      done++;
      if (done === WARM) start = performance.now();
      if (done % STEP === 0) producer.send(done);
      if (done === jobs + WARM) resolve();
    });
  });
  console.log(JSON.stringify({ jobs, form, concurrency, threads, items_per_s: jobs / (performance.now() - start) * 1000 }));
  producer.kill();
  process.exit(0);
}

await (process.env.ROLE === 'producer' ? produce() : serve());
