/** What all views say about a job: its name, state, step and times. No DOM, no network. */

import { shownNow } from './clock.js';
import { duration, moment, number, remaining, steps, stopwatch } from './format.js';
import { isFinished, isOpenEnded, jobPath } from './job.js';
import { sentence, t } from './text.js';

/** @typedef {import('./jobs.js').Job | import('./uploads.js').Upload} Entry */

/** @param {Entry} entry */
export const nameOf = (entry) => entry.name || entry.input_filename || entry.kind || t('Untitled job');

/** @param {string} status @returns {string | undefined} */
export const verdictOf = (status) =>
  ({ queued: t('Queued'), completed: t('Done'), partially_completed: t('Partly done'), failed: t('Failed'), cancelled: t('Cancelled') })[status];

/** @param {{priority?: string}} entry a job or a batch */
export const priorityOf = ({ priority }) => ({ low: t('Low'), normal: t('Normal'), high: t('High') })[priority] ?? priority;

/** @param {string} status of a job or a batch @param {string} name @returns {string | undefined} undefined while it runs */
export const announcementOf = (status, name) =>
  ({
    completed: t('{name} is done.', { name }),
    partially_completed: t('{name} is partly done.', { name }),
    failed: t('{name} failed.', { name }),
    cancelled: t('{name} was cancelled.', { name }),
  })[status];

/** @param {Entry} entry @returns {number} */
export const percentOf = ({ status, progress }) => (status === 'completed' ? 100 : progress?.percent ?? 0);

/** @param {Entry} entry the percentage or the verdict; empty for an open-ended job */
export const figureOf = (entry) =>
  verdictOf(entry.status) ?? (isOpenEnded(entry) ? '' : t('{percent}%', { percent: percentOf(entry) }));

/** @param {Entry} entry the state in a word or two */
export function stateOf({ status, progress, silent_since: since, waiting }) {
  if (status === 'uploading') return waiting ? t('Waiting') : t('Uploading');
  if (status === 'queued') return t('Waiting');
  if (status !== 'processing') return verdictOf(status);
  if (progress?.stalled) return since ? t('Silent for {time}', { time: roughly(since) }) : t('Silent');
  return progress?.slow ? t('Slower than usual') : t('Running');
}

function roughly(since) {
  const seconds = (shownNow() - Date.parse(since)) / 1000;
  if (seconds < 60) return t('{n} s', { n: Math.max(0, Math.floor(seconds)) });
  if (seconds < 3600) return t('{n} min', { n: Math.floor(seconds / 60) });
  return t('{n} h', { n: Math.floor(seconds / 3600) });
}

/** @param {Entry} entry */
export function stepOf({ status, pipeline, progress = {}, page_count: pages, error }) {
  if (status === 'queued') return pipeline ? t('Waiting for its turn') : t('Not started yet');
  if (status === 'completed') return pages ? t('{n} page | {n} pages', { n: pages }) : '';
  const { step_name: name = '', current_step: step, total_steps: total, unit, phase } = progress;
  if (status === 'failed' && error) return sentence(error);
  if (isFinished({ status })) return name ? t('Stopped at {step}', { step: name }) : '';
  const part = phase && !name.startsWith(phase) ? phase : '';
  return [part, name, steps(step, total, unit)].filter(Boolean).join(' · ') || t('Starting');
}

/** The remaining time; empty once a step takes longer than the previous steps predict. */
export function forecast({ ends_at: end, ends_within: within, progress }) {
  if (end === undefined || progress?.stalled) return '';
  const left = (time) => Math.max(0, time - shownNow()) / 1000;
  const seconds = left(end);
  if (seconds < 3 && progress?.percent < 75) return '';
  return within ? remaining(seconds, left(within.earliest), left(within.latest)) : remaining(seconds);
}

/** @param {import('./jobs.js').Job} job a job that has started, and maybe finished */
export function spentOn(job) {
  if (isFinished(job) && job.elapsed_seconds !== undefined) return duration(job.elapsed_seconds);
  const end = isFinished(job) ? Date.parse(job.completed_at) : shownNow();
  const seconds = (end - Date.parse(job.started_at)) / 1000;
  if (Number.isNaN(seconds)) return '';
  return isFinished(job) ? duration(seconds) : stopwatch(seconds);
}

/** @param {import('./jobs.js').Job} job the times of a job, as a phrase */
export function timeOf(job) {
  if (job.status === 'queued') return job.created_at ? t('since {time}', { time: moment(job.created_at) }) : '';
  const spent = spentOn(job);
  const late = job.progress?.stalled || job.progress?.slow;
  if (!isFinished(job)) return [spent, late ? stateOf(job) : forecast(job)].filter(Boolean).join(' · ');
  const end = job.completed_at ? moment(job.completed_at) : '';
  const time = spent && (job.status === 'completed' ? t('in {time}', { time: spent }) : t('after {time}', { time: spent }));
  return [time, end].filter(Boolean).join(' · ');
}

/**
 * @param {import('./jobs.js').Job} job
 * @returns {{href: string, elsewhere: boolean} | null} null for a job without a result, or with an unsafe URL
 */
export function resultOf({ id, status, output_path: output }) {
  if (!output || status !== 'completed') return null;
  if (output.startsWith('/')) return { href: jobPath(id, '/download'), elsewhere: false };
  return /^https?:\/\//i.test(output) ? { href: output, elsewhere: true } : null;
}

/** @param {{completed?: number, processing?: number, pending?: number, failed?: number, cancelled?: number}} counts of the jobs of a batch */
export function countsOf({ completed, processing, pending, failed, cancelled }) {
  return [
    completed && t('{n} done', { n: number(completed) }),
    processing && t('{n} running', { n: number(processing) }),
    pending && t('{n} waiting', { n: number(pending) }),
    failed && t('{n} failed', { n: number(failed) }),
    cancelled && t('{n} cancelled', { n: number(cancelled) }),
  ].filter(Boolean).join(', ');
}

/** The server can retry its own jobs, and the page its uploads. Some files are rejected every time. */
export function canRetry({ upload, status, refused, pipeline }) {
  if (status !== 'failed' && status !== 'cancelled') return false;
  return upload ? !refused : Boolean(pipeline);
}
