/** What all modules know about a job: what its states mean, and its path in the REST API. No DOM, no network. */

export const FINISHED = new Set(['completed', 'failed', 'cancelled']);

/** @param {{status: string} | {state: string}} job a job or a task */
export const isFinished = (job) => FINISHED.has(job.status ?? job.state);

/** @param {import('./jobs.js').Job} job a running job of unknown progress: without a percentage or a number of steps */
export const isOpenEnded = ({ status, progress }) =>
  status === 'processing' && !progress?.total_steps && !progress?.percent;

/** @param {import('./jobs.js').Job} job a running job that is silent, or slower than usual */
export const isLate = ({ status, progress }) =>
  status === 'processing' && Boolean(progress?.stalled || progress?.slow);

/** @param {import('./jobs.js').Job} job */
export const needsLook = (job) => job.status === 'failed' || isLate(job);

/** @param {string} id @param {string} [rest] */
export const jobPath = (id, rest = '') => `api/jobs/${encodeURIComponent(id)}${rest}`;

/** @param {string} id @param {string} [rest] */
export const batchPath = (id, rest = '') => `api/batch/${encodeURIComponent(id)}${rest}`;
