/** The state of all jobs, built from REST objects and messages. No DOM, no network. */

import { now } from './clock.js';

/**
 * A job as in the REST API; unknown fields are absent. Never changed in place.
 * @typedef {object} Job
 * @property {string} id
 * @property {'queued'|'processing'|'completed'|'failed'|'cancelled'} status
 * @property {string} [kind]
 * @property {string} [pipeline] the pipeline that the daemon runs; absent if an external producer reports the job
 * @property {string} [batch_id] the batch that it belongs to
 * @property {string} [name]
 * @property {string} [input_filename]
 * @property {Progress} [progress]
 * @property {string} [output_path] the path or URL of the result, if any
 * @property {string} [error] the error sentence of a failed job
 * @property {number} [page_count]
 * @property {number} [elapsed_seconds]
 * @property {string} [created_at]
 * @property {string} [started_at]
 * @property {string} [completed_at]
 * @property {number} [ends_at] forecast, milliseconds since the epoch by the server's clock; added by the page
 * @property {{earliest: number, latest: number}} [ends_within] its interval of 80 %, in the same unit; added by the page
 * @property {Map<number, Preview>} [previews] newest preview by page number; added by the page
 *
 * @typedef {object} Progress
 * @property {number} current_step
 * @property {number} total_steps
 * @property {string} step_name
 * @property {number} percent
 * @property {string} [unit] what the steps count, such as B
 * @property {number} [rate] units a second
 * @property {string} [phase]
 * @property {Task[]} [tasks]
 *
 * @typedef {object} Task
 * @property {string} id
 * @property {string} name
 * @property {number} current
 * @property {number} total 0 if unknown
 * @property {Job['status']} state
 * @property {string} [unit]
 *
 * @typedef {object} Preview a JPEG
 * @property {number} page_number
 * @property {string} preview_base64
 * @property {string} stage
 * @property {number} width pixels
 * @property {number} height pixels
 */

/** The number of newest jobs that the page requests, and of finished jobs that it keeps. */
export const LIST_LIMIT = 50;

const FINISHED = new Set(['completed', 'failed', 'cancelled']);
const PREVIEWS_KEPT = 12;

/** @param {{status: string} | {state: string}} job a job or a task */
export const isFinished = (job) => FINISHED.has(job.status ?? job.state);

/** @param {Job} job a running job of unknown progress: without a percentage or a number of steps */
export const isOpenEnded = ({ status, progress }) =>
  status === 'processing' && !progress?.total_steps && !progress?.percent;

/** The changes of each message type: `(job, data, time)` → the changed fields. */
const CHANGES = {
  progress(job, data, time) {
    if (isFinished(job)) return {};
    const { eta_seconds: seconds, eta, ...progress } = data;
    const from = Date.parse(time); // the message may be old
    const ends_at = from + seconds * 1000;
    if (Number.isNaN(ends_at)) return { progress, ends_at: undefined, ends_within: undefined };
    return { progress, ends_at, ends_within: eta && { earliest: from + eta.low * 1000, latest: from + eta.high * 1000 } };
  },
  status_change(job, { new_status: status }, time) {
    if (isFinished(job)) return {};
    const moment = new Date(now()).toISOString();
    if (status === 'queued') return { status, progress: undefined, ends_at: undefined, started_at: undefined };
    if (status === 'processing') return { status, started_at: time ?? job.started_at ?? moment };
    return { status, completed_at: time ?? moment };
  },
  completed(job, data) {
    return {
      status: 'completed',
      output_path: data.download_url ?? data.output_path ?? undefined,
      elapsed_seconds: data.elapsed_seconds,
      page_count: data.page_count,
    };
  },
  error: (job, data) => ({ status: 'failed', error: data.message }),
  page_preview(job, data) {
    const previews = new Map(job.previews).set(data.page_number, data);
    if (previews.size > PREVIEWS_KEPT) previews.delete(Math.min(...previews.keys()));
    return { previews };
  },
};

export class Jobs {
  /** @type {Map<string, Job>} */
  #jobs = new Map();
  #listener;

  /** @param {{onChange: () => void, onFinished: (job: Job) => void}} listener */
  constructor(listener) {
    this.#listener = listener;
  }

  /** @returns {Job[]} */
  newestFirst() {
    return [...this.#jobs.values()].sort((a, b) => (b.created_at ?? '').localeCompare(a.created_at ?? ''));
  }

  /** Stores a job from REST. A finished job stays finished: a contrary response is outdated. */
  put(job) {
    const known = this.#jobs.get(job.id);
    if (known && isFinished(known) && !isFinished(job)) return;
    const sameProgress = known?.progress?.percent === job.progress?.percent;
    this.#set({ ...job, previews: known?.previews, ends_at: sameProgress ? known?.ends_at : undefined });
  }

  /**
   * Stores the newest jobs from REST, and drops finished jobs that are no longer in the list.
   * @param {Job[]} list
   * @returns {string[]} unfinished jobs missing from the list: older than its end, or deleted
   */
  replaceAll(list) {
    const listed = new Set(list.map((job) => job.id));
    const others = [...this.#jobs.values()].filter((job) => !listed.has(job.id));
    for (const job of others) if (isFinished(job)) this.remove(job.id);
    for (const job of list) this.put(job);
    this.#listener.onChange();
    return others.filter((job) => !isFinished(job)).map((job) => job.id);
  }

  /** Discards the forecasts, which may be outdated. The next message with a forecast sets it again. */
  dropForecasts() {
    for (const [id, job] of this.#jobs) this.#jobs.set(id, { ...job, ends_at: undefined });
    this.#listener.onChange();
  }

  clear() {
    this.#jobs.clear();
    this.#listener.onChange();
  }

  remove(id) {
    if (this.#jobs.delete(id)) this.#listener.onChange();
  }

  /**
   * Applies a message of the stream. Unknown types change nothing.
   * @returns {boolean} false if the message is about an unknown job
   */
  apply({ type, job_id: id, batch_id, data, time }) {
    const job = this.#jobs.get(id);
    if (type === 'job_created') {
      if (!job) this.#set({ id, batch_id, ...data });
      return true;
    }
    if (type === 'job_deleted') {
      this.remove(id);
      return true;
    }
    const change = CHANGES[type];
    if (!change) return true;
    if (job) this.#set({ ...job, ...change(job, data, time) });
    return job !== undefined;
  }

  #set(job) {
    const before = this.#jobs.get(job.id);
    this.#jobs.set(job.id, job);
    if (before && !isFinished(before) && isFinished(job)) {
      this.#forgetOldest();
      this.#listener.onFinished(job);
    }
    this.#listener.onChange();
  }

  #forgetOldest() {
    for (const job of this.newestFirst().filter(isFinished).slice(LIST_LIMIT)) this.#jobs.delete(job.id);
  }
}
