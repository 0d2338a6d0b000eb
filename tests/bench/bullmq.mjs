// BullMQ's ping: adds N jobs in bulk, runs them in a worker with C in flight, prints one JSON object.
// usage: node bullmq.mjs SOCKET JOBS CONCURRENCY PAYLOAD_BYTES
import { createRequire } from 'node:module';
const require = createRequire(process.env.PEERS + '/');
const { Queue, Worker } = require('bullmq');
const Redis = require('ioredis');

const [socket, jobs, concurrency, payload] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const connect = () => new Redis({ path: socket, maxRetriesPerRequest: null });
const connections = [connect(), connect()];
const queue = new Queue('ping', { connection: connections[0] });
const data = { echo: 'x'.repeat(payload) };

const t0 = performance.now();
for (let i = 0; i < jobs; i += 1000) {
  const n = Math.min(1000, jobs - i);
  await queue.addBulk(Array.from({ length: n }, () => ({ name: 'ping', data, opts: { removeOnComplete: { age: 3600 } } })));
}
const t1 = performance.now();
let done = 0;
let worker;
await new Promise((resolve) => {
  worker = new Worker('ping', async (job) => job.data.echo, { connection: connections[1], concurrency });
  worker.on('completed', () => { if (++done === jobs) resolve(); });
});
const t2 = performance.now();
console.log(JSON.stringify({ jobs, concurrency, jobs_per_s: jobs / (t2 - t1) * 1000, enqueue_per_s: jobs / (t1 - t0) * 1000 }));
await worker.close();
await queue.close();
connections.forEach((c) => c.disconnect());
