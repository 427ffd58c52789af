/** One job, kept up to date: requested over REST, and changed by the messages of its stream. No DOM. */

import { now } from './clock.js';
import { isFinished, jobPath } from './job.js';
import { forecastOf, offsetOf } from './jobs.js';
import { pass, request, token } from './pass.js';
import { watch } from './progressd.js';

/** The timeline is requested again at most this often. */
const REFRESH_MS = 1000;

/** Without a stream, the job is requested this often. */
const POLL_MS = 2000;

/** The time for the stream to reconnect before the page polls. */
const PATIENCE_MS = 1500;

/**
 * A job as in docs/rest.md. Added by the page, as in jobs.js: `ends_at`, `ends_within`, `silent_since` and `heard_at`.
 * @typedef {Record<string, any>} Job
 *
 * @typedef {'missing' | 'deleted' | 'expired' | 'forbidden'} Absence
 */

export class JobModel {
  #id;
  #listener;
  #job = null;
  #newest = 0; // the offset of the newest message
  #leaving = new AbortController();
  #refreshing = 0;
  #requestedAt = -Infinity;
  #polling = 0;
  #connection = 'reconnecting';

  /**
   * @param {string} id
   * @param {{onChange: (job: Job) => void, onFinished: (job: Job) => void, onPreview: (preview: object) => void,
   *   onAbsent: (why: Absence, sentence: string) => void, onNotice: (sentence: ?string) => void,
   *   onConnection: (connection: 'live' | 'polling' | 'reconnecting' | 'ended') => void}} listener
   */
  constructor(id, listener) {
    this.#id = id;
    this.#listener = listener;
  }

  /** @returns {?Job} */
  get job() {
    return this.#job;
  }

  /** Requests the job, and follows it until it ends or `stop`. */
  async start() {
    this.stop();
    const { signal } = (this.#leaving = new AbortController());
    this.#tell('reconnecting');
    for (let failures = 0; !signal.aborted; failures += 1) {
      if (await this.refresh()) failures = 0;
      if (signal.aborted) return;
      if (this.#job && isFinished(this.#job)) break;
      if (this.#job) await this.#follow(signal);
      if (signal.aborted) return;
      await new Promise((resume) => setTimeout(resume, failures ? Math.min(15_000, 1000 * 2 ** failures) : 200));
    }
    if (!signal.aborted) this.#tell('ended');
  }

  stop() {
    this.#leaving.abort();
    clearTimeout(this.#refreshing);
    clearTimeout(this.#polling);
    this.#refreshing = 0;
  }

  /** Forgets the job, for another key. */
  clear() {
    this.stop();
    this.#job = null;
  }

  /** Requests the job now. @returns {Promise<boolean>} whether the server sent it */
  async refresh() {
    clearTimeout(this.#refreshing);
    this.#refreshing = 0;
    this.#requestedAt = performance.now();
    const { signal } = this.#leaving;
    try {
      const job = await request(jobPath(this.#id));
      if (signal.aborted) return false;
      this.#put(job);
      return true;
    } catch (error) {
      if (!signal.aborted) this.#missed(error);
      return false;
    }
  }

  #missed({ status, message }) {
    if (status === 400 || status === 404) this.#leave(this.#job ? 'deleted' : 'missing', message);
    else if (status === 401 && token) this.#leave('expired', message);
    else if (status === 403) this.#leave('forbidden', message);
    else if (status !== 401) this.#listener.onNotice(message);
  }

  #leave(why, sentence) {
    this.stop();
    this.#tell('ended');
    this.#listener.onAbsent(why, sentence);
  }

  async #follow(signal) {
    const options = { job: this.#id, ...pass(), signal };
    try {
      for await (const message of watch(document.baseURI, options)) {
        if (signal.aborted) return;
        this.#receive(message);
      }
    } catch {
      // The next request for the job says why the server refused to continue.
    }
  }

  #receive({ type, data, cursor, time }) {
    if (type === 'resync') this.#newest = 0; // another daemon counts anew
    else if (cursor) this.#newest = offsetOf(cursor);
    if (type === 'connection') this.#connected(data.state);
    else if (type === 'progress') this.#moved(data, time);
    else if (type === 'page_preview') this.#listener.onPreview(data);
    else if (type === 'server_shutdown' || type === 'server_status') this.#listener.onNotice({ type, ...data });
    else if (['status_change', 'completed', 'error', 'resync', 'job_deleted'].includes(type)) this.#refreshSoon(50);
  }

  #connected(state) {
    clearTimeout(this.#polling);
    this.#tell(state);
    if (state === 'live') {
      this.#listener.onNotice(null);
      this.#refreshSoon(50);
    } else {
      this.#job = { ...this.#job, ends_at: undefined, ends_within: undefined };
      this.#polling = setTimeout(() => this.#poll(), PATIENCE_MS);
    }
  }

  async #poll() {
    const { signal } = this.#leaving;
    if (await this.refresh() && this.#connection !== 'live') this.#tell('polling');
    if (!signal.aborted && this.#connection !== 'live') this.#polling = setTimeout(() => this.#poll(), POLL_MS);
  }

  #moved(data, time) {
    if (!this.#job || isFinished(this.#job)) return;
    const before = this.#job.progress ?? {};
    const status = this.#job.status === 'queued' ? 'processing' : this.#job.status;
    this.#set({ ...this.#job, ...forecastOf(this.#job, data, time), status, progress: data, progress_at: time });
    if (data.step_name !== before.step_name || data.phase !== before.phase) this.#refreshSoon();
  }

  #refreshSoon(milliseconds = Math.max(0, this.#requestedAt + REFRESH_MS - performance.now())) {
    this.#refreshing ||= setTimeout(() => this.refresh(), milliseconds);
  }

  /** Stores a job from REST. Its progress may be older than that of the stream. */
  #put(job) {
    const isOlder = this.#job?.progress && !isFinished(job) && offsetOf(job.cursor) < this.#newest;
    const { progress, progress_at } = isOlder ? this.#job : job;
    const forecast = isFinished(job) || !progress ? {} : forecastOf(job, progress, progress_at);
    this.#set({ ...job, ...forecast, progress, progress_at });
  }

  #set(job) {
    const before = this.#job;
    this.#job = job;
    this.#listener.onChange(job);
    if (before && !isFinished(before) && isFinished(job)) this.#listener.onFinished(job);
  }

  #tell(connection) {
    if (connection === this.#connection) return;
    this.#connection = connection;
    this.#listener.onConnection(connection);
  }
}

/** Seconds until the forecast end; undefined if it is unknown, or once a step takes longer than predicted. */
export function remainingOf({ ends_at: end, ends_within: within, progress }) {
  if (end === undefined) return undefined;
  const left = (time) => Math.max(0, time - now()) / 1000;
  const seconds = left(end);
  if (seconds < 3 && progress?.percent < 75) return undefined;
  return { seconds, low: within ? left(within.earliest) : seconds, high: within ? left(within.latest) : seconds };
}
