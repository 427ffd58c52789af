/** What the page knows of each job: REST objects and messages in, job objects out. No DOM, no network. */

import { now } from './clock.js';

/**
 * A job as the REST API gives it; fields not known yet are absent. Never changed in place.
 * @typedef {object} Job
 * @property {string} id
 * @property {'queued'|'processing'|'completed'|'failed'|'cancelled'} status
 * @property {string} [kind]
 * @property {string} [pipeline] that the daemon runs for it; absent when a producer of its own reports it
 * @property {string} [batch_id] of those that it was handed in with
 * @property {string} [input_filename]
 * @property {{current_step: number, total_steps: number, step_name: string, percent: number}} [progress]
 * @property {string} [output_path] where the result is, when there is one
 * @property {string} [error] the sentence a failed job ended with
 * @property {number} [page_count]
 * @property {number} [elapsed_seconds]
 * @property {string} [created_at]
 * @property {string} [started_at]
 * @property {string} [completed_at]
 * @property {number} [ends_at] forecast, milliseconds since the epoch by the server's clock; the page's own
 * @property {Map<number, Preview>} [previews] newest by page number; the page's own
 *
 * @typedef {object} Preview a JPEG
 * @property {number} page_number
 * @property {string} preview_base64
 * @property {string} stage
 * @property {number} width pixels
 * @property {number} height pixels
 */

/** How many of the newest jobs the page asks for, and how many finished ones it keeps. */
export const LIST_LIMIT = 50;

const FINISHED = new Set(['completed', 'failed', 'cancelled']);
const PREVIEWS_KEPT = 12;

/** @param {{status: string}} job */
export const isFinished = (job) => FINISHED.has(job.status);

/** @param {Job} job running, with neither a percentage nor the number of its steps told: nobody knows how far it is */
export const isOpenEnded = ({ status, progress }) =>
  status === 'processing' && !progress?.total_steps && !progress?.percent;

/** What each type of message changes: `(job, data, time)` → the fields that are different now. */
const CHANGES = {
  progress(job, data, time) {
    if (isFinished(job)) return {};
    const { eta_seconds: eta, ...progress } = data;
    const ends_at = Date.parse(time) + eta * 1000; // from when it was said, which may be long ago
    return { progress, ends_at: Number.isNaN(ends_at) ? undefined : ends_at };
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

  /** Takes a job from REST. A finished one stays finished: an answer that says otherwise was overtaken. */
  put(job) {
    const known = this.#jobs.get(job.id);
    if (known && isFinished(known) && !isFinished(job)) return;
    const sameProgress = known?.progress?.percent === job.progress?.percent;
    this.#set({ ...job, previews: known?.previews, ends_at: sameProgress ? known?.ends_at : undefined });
  }

  /**
   * Takes the newest jobs from REST and drops the finished ones that are no longer among them.
   * @param {Job[]} list
   * @returns {string[]} unfinished jobs the list does not hold: older than its end, or gone
   */
  replaceAll(list) {
    const listed = new Set(list.map((job) => job.id));
    const others = [...this.#jobs.values()].filter((job) => !listed.has(job.id));
    for (const job of others) if (isFinished(job)) this.remove(job.id);
    for (const job of list) this.put(job);
    this.#listener.onChange();
    return others.filter((job) => !isFinished(job)).map((job) => job.id);
  }

  /** Nobody tells any more whether the forecasts still hold: the next message that brings one does. */
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
   * Applies a message of the stream; types it does not know change nothing.
   * @returns {boolean} false when the message is about a job that is not known
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
