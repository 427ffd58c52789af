/** The state of the jobs, built from REST objects and messages. No DOM, no network. */

import { now } from './clock.js';
import { isFinished } from './job.js';

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
 * @property {Record<string, string>} [labels]
 * @property {Progress} [progress]
 * @property {string} [output_path] the path or URL of the result, if any
 * @property {string} [error] the error sentence of a failed job
 * @property {number} [page_count]
 * @property {number} [elapsed_seconds]
 * @property {string} [created_at]
 * @property {string} [started_at]
 * @property {string} [completed_at]
 * @property {number} [lease_seconds]
 * @property {string} [silent_since] of a stalled job, the time of the last event
 * @property {string} [heard_at] the time of its newest progress; added by the page
 * @property {number} [changed] the position of its newest change in the order of all changes; added by the page
 * @property {number} [ends_at] forecast, milliseconds since the epoch by the server's clock; added by the page
 * @property {{earliest: number, latest: number}} [ends_within] its interval of 80 %, in the same unit; added by the page
 * @property {Map<number, Preview>} [previews] newest preview by page number; added by the page
 *
 * @typedef {object} Progress
 * @property {number} current_step
 * @property {number} total_steps
 * @property {string} step_name
 * @property {number} percent
 * @property {boolean} [stalled] whether the producer is silent
 * @property {boolean} [slow] whether the job takes longer than usual
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

export { FINISHED, isFinished, isLate, isOpenEnded, needsLook } from './job.js';

const PREVIEWS_KEPT = 12;

/** @param {string} [cursor] @returns {number} its place in the order of all changes */
export const offsetOf = (cursor) => Number(cursor?.slice(cursor.lastIndexOf('-') + 1)) || 0;

/** A job stalls one lease after its last event. */
function silentSince({ lease_seconds: lease, heard_at: heard }, stalledAt) {
  return lease && !Number.isNaN(stalledAt) ? new Date(stalledAt - lease * 1000).toISOString() : heard;
}

/** What the progress of a job says about its future and its silence. The progress may be old. */
export function forecastOf(job, { eta, stalled }, time) {
  const from = Date.parse(time);
  const ends_at = from + eta?.seconds * 1000;
  const known = !Number.isNaN(ends_at);
  const ends_within = known ? { earliest: from + eta.low * 1000, latest: from + eta.high * 1000 } : undefined;
  const times = stalled ? { silent_since: silentSince(job, from) } : { heard_at: time };
  return { ...times, ends_at: known ? ends_at : undefined, ends_within };
}

/** The changes of each message type: `(job, data, time)` → the changed fields. */
const CHANGES = {
  progress(job, data, time) {
    if (isFinished(job)) return {};
    return { progress: data, ...forecastOf(job, data, time) };
  },
  status_change(job, { new_status: status }, time, cursor) {
    if (isFinished(job)) return {};
    const moment = new Date(now()).toISOString();
    const changed = offsetOf(cursor);
    if (status === 'queued') return { status, changed, progress: undefined, ends_at: undefined, started_at: undefined };
    if (status === 'processing') return { status, changed, started_at: time ?? job.started_at ?? moment };
    return { status, changed, completed_at: time ?? moment };
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
  #onChange;
  /** The number of finished jobs. */
  finished = 0;

  /**
   * @param {(before?: Job, after?: Job, told?: boolean) => void} onChange receives a job before and after each change:
   *   `before` is absent for a new job, `after` for a removed one. `told`: a message told it, not a list
   */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  get size() {
    return this.#jobs.size;
  }

  /** @param {string} id @returns {Job | undefined} */
  get(id) {
    return this.#jobs.get(id);
  }

  /** @returns {Iterable<Job>} in no order */
  all() {
    return this.#jobs.values();
  }

  /** Stores a job from REST. A finished job stays finished: a contrary response is outdated. */
  put({ options, job_id, attempt, steps, cursor, ...job }) {
    const known = this.#jobs.get(job.id);
    if (known && isFinished(known) && !isFinished(job)) return;
    const forecast = isFinished(job) ? {} : forecastOf(job, job.progress, job.progress_at);
    this.#set({ ...job, ...forecast, previews: known?.previews, changed: offsetOf(cursor) }, false);
  }

  /** Discards the forecasts, which may be outdated. The next message with a forecast sets it again. */
  dropForecasts() {
    for (const [id, job] of this.#jobs) if (job.ends_at) this.#jobs.set(id, { ...job, ends_at: undefined });
    this.#onChange();
  }

  clear() {
    this.#jobs.clear();
    this.finished = 0;
    this.#onChange();
  }

  /** @param {string} id @param {boolean} [told] whether the job was deleted, and not only dropped from the page */
  remove(id, told = false) {
    const job = this.#jobs.get(id);
    if (!job) return;
    this.#jobs.delete(id);
    this.finished -= Number(isFinished(job));
    this.#onChange(job, undefined, told);
  }

  /**
   * Applies a message of the stream. Unknown types change nothing.
   * @returns {boolean} false if the message is about an unknown job
   */
  apply({ type, job_id: id, batch_id, data, time, cursor }) {
    const job = this.#jobs.get(id);
    if (type === 'job_created') {
      if (!job) this.#set({ id, batch_id, ...data, changed: offsetOf(cursor) }, true);
      return true;
    }
    if (type === 'job_deleted') {
      this.remove(id, true);
      return true;
    }
    const change = CHANGES[type];
    if (!change) return true;
    if (job) this.#set({ ...job, ...change(job, data, time, cursor) }, true);
    return job !== undefined;
  }

  #set(job, told) {
    const before = this.#jobs.get(job.id);
    this.#jobs.set(job.id, job);
    this.finished += Number(isFinished(job)) - Number(Boolean(before && isFinished(before)));
    this.#onChange(before, job, told);
  }
}
