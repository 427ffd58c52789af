// node produce.mjs MODULE URL KEY: report jobs, and submit a file. Prints what the test checks.

const [module, url, key] = process.argv.slice(2);
const { report, submit } = await import(module);
let requests = 0;
const { fetch } = globalThis;
globalThis.fetch = (...given) => {
  requests += 1;
  return fetch(...given);
};

const job = await report(url, { key, kind: 'import', name: 'Import', labels: { team: 'a' }, lease_seconds: 60 });
for (let step = 1; step <= 1000; step += 1) job.progress(step, 1000, `File ${step}`);
job.progress({ tasks: [{ id: 'a', name: 'A', current: 1, total: 2 }] });
job.progress({ tasks: [{ id: 'a', current: 2 }, { id: 'b', name: 'B' }] });
for (let line = 1; line <= 100; line += 1) job.log(`line ${line}`);
await job.complete({ output_path: 'https://files.example/report.zip' });
const few = requests < 5;

const failing = await report(url, { key, kind: 'import' });
failing.progress(1, 2);
await failing.fail(new Error('The disk is full.'));

const errors = [];
const refused = await report(url, { key: 'pgd_wrong', onerror: (error) => errors.push(error.code) });
const end = await refused.complete().catch(({ code }) => code);

const cancelled = await report(url, { key, kind: 'import', onerror: () => {} });
cancelled.progress(1, 100);
const ended = new Promise((resolve) => cancelled.signal.addEventListener('abort', resolve));
const headers = { Authorization: `Bearer ${key}` };
let status;
do status = (await fetch(`${url}/api/jobs/${cancelled.id}`, { method: 'DELETE', headers })).status; while (status === 404);
cancelled.progress(2, 100);
await ended;

const { job_id: submitted } = await submit(url, new Blob(['%PDF-1.7 a']), { pipeline: 'copy', key });
console.log(JSON.stringify({
  job: job.id, failing: failing.id, few, refused: [end, refused.signal.aborted], cancelled: cancelled.signal.reason.status, submitted,
}));
