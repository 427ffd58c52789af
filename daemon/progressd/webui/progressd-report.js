/** `submit` and `report` of progressd.js, for producers. They are loaded when they are used. */

import { baseOf, isLocal, ProgressdError, request } from './progressd.js';

const GAP_MS = 1000; // between two requests: a daemon on another machine allows 60 a minute
const LOCAL_GAP_MS = 200;
const LONGEST_DELAY_MS = 30_000;
const MAX_TRIES = 4; // of an upload
const MAX_QUEUED = 10_000; // events
const MAX_BATCH = 1000; // events in a request
const MAX_KEPT_ALIVE = 60_000; // bytes that browsers send after the page is closed

const pause = (delay, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, delay);
  signal?.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
});

const backOff = (tries, error) =>
  Math.max(Math.min(LONGEST_DELAY_MS, 500 * 2 ** tries) * (0.5 + Math.random() / 2), error.retryAfter * 1000);

/** `crypto.randomUUID` is only for pages with https. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  return hex(bytes).replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');

/** Sends files: see `submit` in progressd.js. The same key for each try, so that a repetition creates nothing twice. */
export async function submitFiles(url, files, given = {}) {
  const { pipeline, options = {}, labels, key, signal, onprogress, idempotencyKey = newId() } = given;
  const list = files instanceof Blob ? [files] : [...files];
  const base = baseOf(url);
  const target = new URL(list.length === 1 ? 'api/convert' : 'api/batch', base);
  if (pipeline) target.searchParams.set('pipeline', pipeline);
  const form = new FormData();
  form.append('options', JSON.stringify(options));
  if (labels) form.append('labels', JSON.stringify(labels));
  for (const file of list) form.append(list.length === 1 ? 'file' : 'files[]', file, file.name ?? 'file');
  const headers = { 'Idempotency-Key': idempotencyKey };
  for (let tries = 1; ; tries += 1) {
    try {
      if (onprogress && globalThis.XMLHttpRequest) return await sendVisibly(target, form, headers, given);
      const response = await request(base, target, { method: 'POST', body: form, headers, key, signal });
      return await response.json();
    } catch (error) {
      if (!error.transient || error.status === 507 || tries === MAX_TRIES) throw error;
      await pause(backOff(tries, error), signal);
      signal?.throwIfAborted();
    }
  }
}

/** XMLHttpRequest, because fetch does not report how much of a body has been sent. */
function sendVisibly(url, form, headers, { key, signal, onprogress }) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open('POST', url);
    const all = { ...headers, ...(key && { Authorization: `Bearer ${key}` }) };
    for (const [name, value] of Object.entries(all)) xhr.setRequestHeader(name, value);
    xhr.responseType = 'json';
    xhr.upload.onprogress = ({ loaded, total }) => onprogress({ loaded, total });
    xhr.onload = () => {
      if (xhr.status < 300 && xhr.response) resolve(xhr.response);
      else reject(ProgressdError.of(url, xhr.status, xhr.response, xhr.getResponseHeader('Retry-After')));
    };
    xhr.onerror = () => reject(new ProgressdError(`No connection to ${url.host}.`, 'unreachable'));
    xhr.onabort = () => reject(signal.reason);
    if (signal?.aborted) return reject(signal.reason);
    signal?.addEventListener('abort', () => xhr.abort());
    xhr.send(form);
  });
}

/** A job that this program reports on. No method waits for the network, except those that end the job. */
export class Report {
  /** The id of the job. */
  id;
  #base;
  #key;
  #events = [];
  #progress = null; // the event of a progress that has not been sent
  #newest = null; // the newest progress, for the lease
  #created;
  #cursor;
  #source = hex(crypto.getRandomValues(new Uint8Array(8)));
  #seq = 0;
  #missing = 0; // lines
  #gap;
  #sending = false;
  #hurry = new AbortController();
  #over = new AbortController();
  #leases = 0;
  #ending = null;

  constructor(url, { key, id = newId(), onerror, ...data } = {}) {
    this.id = id;
    this.#base = baseOf(url);
    this.#key = key;
    this.#gap = isLocal(this.#base.hostname) ? LOCAL_GAP_MS : GAP_MS;
    this.onerror = onerror ?? ((error) => console.warn(`progressd: ${error.message}`));
    this.#created = { type: 'job_created', job_id: id, data };
    this.#put(this.#created);
    if (data.lease_seconds) {
      this.#leases = setInterval(() => this.#put(this.#newest ?? this.#created), data.lease_seconds * 500);
      this.#leases.unref?.();
    }
  }

  /** Aborted when the job was cancelled, or when the daemon refuses the reports. `reason` is a ProgressdError. */
  get signal() {
    return this.#over.signal;
  }

  /**
   * Reports progress: `progress(3, 12, 'Reading')`, or an object with the fields of docs/producers.md.
   * @param {number | object} step @param {number} [total] @param {string} [name]
   */
  progress(step, total, name) {
    const data = typeof step === 'object' ? step : {
      current_step: step,
      ...(total !== undefined && { total_steps: total }),
      ...(name !== undefined && { step_name: name }),
    };
    this.#newest = { type: 'progress', job_id: this.id, data: merged(this.#newest?.data, data) };
    if (this.#progress) this.#progress.data = merged(this.#progress.data, data);
    else this.#put(this.#progress = { type: 'progress', job_id: this.id, data });
  }

  /** Adds lines to the log. @param {string} text @param {'stdout' | 'stderr'} [stream] */
  log(text, stream = 'stdout') {
    this.#seq += 1;
    const time = new Date().toISOString();
    this.#put({ type: 'log', job_id: this.id, data: { text, stream, time, source: this.#source, seq: this.#seq } });
    if (this.#events.length <= MAX_QUEUED) return;
    const oldest = this.#events.findIndex(({ type }) => type === 'log');
    this.#missing += this.#events.splice(oldest, 1)[0].data.text.split('\n').length;
  }

  /** Ends the job. Resolves when the daemon has stored that. @param {{output_path?: string, page_count?: number}} [data] */
  complete(data = {}) {
    return this.#end({ type: 'completed', job_id: this.id, data });
  }

  /** Ends the job as failed. @param {string} message for the job's user */
  fail(message) {
    return this.#end({ type: 'error', job_id: this.id, data: { message: String(message?.message ?? message) } });
  }

  /** Ends the job as cancelled. */
  cancel() {
    return this.#end({ type: 'status_change', job_id: this.id, data: { new_status: 'cancelled' } });
  }

  #end(event) {
    clearInterval(this.#leases);
    this.#ending ??= new Promise((resolve, reject) => {
      // A job that has not started cannot be completed.
      if (event.type === 'completed' && !this.#newest) this.progress({ current_step: 0, total_steps: 0 });
      Object.defineProperty(event, 'settle', { value: { resolve, reject } });
      if (this.#over.signal.aborted) reject(this.#over.signal.reason);
      else this.#put(event);
      this.#hurry.abort();
    });
    return this.#ending;
  }

  #put(event) {
    if (this.#over.signal.aborted) return;
    this.#events.push(event);
    if (!this.#sending) this.#send();
  }

  async #send() {
    this.#sending = true;
    await null; // what is reported in one go is sent in one go
    let tries = 0;
    while (this.#events.length) {
      const batch = this.#take();
      try {
        await this.#post(batch);
        tries = 0;
        if (this.#events.length) await pause(this.#gap, this.#hurry.signal);
      } catch (error) {
        if (!error.transient) {
          this.#giveUp(error, batch);
          break;
        }
        this.#events.unshift(...batch.filter(({ settled }) => !settled));
        await pause(backOff(tries += 1, error));
      }
    }
    this.#sending = false;
  }

  #take() {
    if (this.#missing) {
      const text = `${this.#missing} lines are missing: the daemon did not answer in time.`;
      this.#missing = 0;
      this.#events.unshift({ type: 'log', job_id: this.id, data: { text, stream: 'stderr' } });
    }
    this.#progress = null;
    return this.#events.splice(0, MAX_BATCH);
  }

  /** Each line is answered. Lines that were rejected for now are thrown back. */
  async #post(batch) {
    const body = batch.map((event) => `${JSON.stringify(event)}\n`).join('');
    const response = await request(this.#base, 'api/events', {
      method: 'POST', key: this.#key, body, keepalive: body.length < MAX_KEPT_ALIVE,
      headers: { 'Content-Type': 'application/x-ndjson' },
    });
    const answers = (await response.text()).split('\n').filter(Boolean).map((line) => JSON.parse(line));
    let delayed = null;
    for (const [number, event] of batch.entries()) {
      const answer = answers[number] ?? { ok: false, status: 503, error: 'no answer' };
      const error = answer.ok ? null : new ProgressdError(answer.error, 'rejected', answer.status, answer.retry_after);
      if (answer.ok) this.#cursor = answer.cursor ?? this.#cursor;
      if (error?.transient) {
        delayed ??= error;
      } else if (error?.status === 404 && event.type !== 'job_created' && !event.again) {
        Object.defineProperty(event, 'again', { value: true }); // restored from a backup: register the job again
        const data = { ...this.#created.data, cursor: this.#cursor };
        this.#events.unshift({ ...this.#created, data }, ...batch.slice(number));
        return;
      } else {
        Object.defineProperty(event, 'settled', { value: true });
        this.#settle(event, error);
      }
    }
    if (delayed) throw delayed;
  }

  #settle(event, error) {
    if (!error) event.settle?.resolve();
    else if (event.settle) event.settle.reject(error);
    else if (error.status === 409 || error.status === 404) this.#giveUp(error, []);
    else this.onerror(error);
  }

  #giveUp(error, batch) {
    clearInterval(this.#leases);
    const ends = [...batch, ...this.#events.splice(0)].map(({ settle }) => settle).filter(Boolean);
    if (!this.#over.signal.aborted) this.#over.abort(error);
    for (const { reject } of ends) reject(error);
    if (!ends.length) this.onerror(error);
  }
}

/** Later values replace earlier ones; tasks are merged by id, as in the daemon. */
function merged(before = {}, after) {
  if (!before.tasks || !after.tasks) return { ...before, ...after };
  const tasks = new Map(before.tasks.map((task) => [task.id, task]));
  for (const task of after.tasks) tasks.set(task.id, { ...tasks.get(task.id), ...task });
  return { ...before, ...after, tasks: [...tasks.values()] };
}
