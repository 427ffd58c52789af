/**
 * The files being sent to the server, each with a resumable upload. Files chosen together become one batch. An upload
 * continues by itself after a cut, and when its file is chosen again after a reload.
 */

import { size } from './format.js';
import { answerOtherTabs, forget, isSame, remember, remembered } from './remembered.js';
import { t } from './text.js';
import { append, create, stateOf, terminate } from './tus.js';

const AT_A_TIME = 3;

/** The server's maximum of files in one batch. */
const FILES_IN_BATCH = 100;

/** How often the progress of an upload is stored in the browser. */
const REMEMBER_MS = 2000;

const MAX_PAUSE_S = 15;

/** Statuses that a retry would not change: a file that is too large or of another type, and invalid options. */
const REFUSALS = new Set([413, 415, 422]);

/** Statuses after which the upload continues by itself: another request still holds it, or the server is busy. */
const PASSING = new Set([408, 409, 423, 429, 500, 502, 503, 504]);

/** Statuses of an upload that the server no longer has. */
const GONE = new Set([404, 410]);

/**
 * A file that is not yet a job, as a card shows it. Never changed in place.
 * @typedef {object} Upload
 * @property {true} upload
 * @property {string} id
 * @property {'uploading'|'failed'} status
 * @property {string} input_filename
 * @property {{step_name: string, percent: number}} progress
 * @property {string} detail the size sent so far
 * @property {boolean} [waiting] whether it waits to be sent
 * @property {boolean} [paused] whether its file must be chosen again
 * @property {string} [error]
 * @property {boolean} [refused] whether a retry would be rejected again
 *
 * @typedef {object} Entry
 * @property {Upload} upload
 * @property {File} [file] missing after a reload
 * @property {import('./remembered.js').Remembered} record
 * @property {AbortController} abort
 * @property {boolean} running
 * @property {number} rememberedAt
 */

export class Uploads {
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  #listener;

  /**
   * @param {object} listener
   * @param {() => void} listener.onChange
   * @param {(message: object) => void} listener.onArrived receives the `job_created` of a file. The stream sends it
   *   too, before or after
   * @param {(upload: Upload) => void} listener.onFailed
   */
  constructor(listener) {
    this.#listener = listener;
    answerOtherTabs(() => [...this.#entries.values()].filter(({ file }) => file).map(({ record }) => record.id));
  }

  /** @returns {Upload[]} newest first */
  newestFirst() {
    return [...this.#entries.values()].map((entry) => entry.upload).reverse();
  }

  /** Whether bytes would have to be sent later if the page were closed now. */
  get busy() {
    return [...this.#entries.values()].some(({ upload }) => upload.status === 'uploading' && !upload.paused);
  }

  /**
   * Sends files, or continues the unfinished uploads of the same files.
   * @param {File[]} files chosen together
   * @param {string} pipeline
   * @param {object} options of the pipeline
   * @param {string} [folder] the name of their folder
   */
  add(files, pipeline, options, folder = '') {
    const fresh = files.filter((file) => !this.#resume(file));
    for (let at = 0; at < fresh.length; at += FILES_IN_BATCH) {
      const together = fresh.slice(at, at + FILES_IN_BATCH);
      const metadata = { pipeline, options: JSON.stringify(options), ...batchOf(together, folder) };
      for (const file of together) {
        const { name, size: bytes, lastModified: modified } = file;
        this.#put({ id: newId(), name, size: bytes, modified, metadata, sent: 0 }, file);
      }
    }
    this.#startNext();
  }

  /** Shows the uploads that a reload or a closed tab interrupted, unless the server has no more of them. */
  async restore() {
    for (const record of await remembered()) {
      if (this.#entries.has(record.id) || !(await isUnfinished(record))) continue;
      if (!this.#entries.has(record.id)) this.#put(record);
    }
  }

  /** Sends a failed upload again, from the bytes that have arrived. */
  retry(id) {
    const { record, file } = this.#entries.get(id);
    this.#put(record, file);
    this.#startNext();
  }

  /** Removes an upload, whether it is waiting, being sent or failed. */
  remove(id) {
    const entry = this.#entries.get(id);
    entry?.abort.abort();
    this.#discard(id);
    if (entry?.record.url) terminate(entry.record.url).catch(() => {}); // otherwise it expires
    this.#startNext();
  }

  /** @returns {boolean} whether the file belongs to an unfinished upload */
  #resume(file) {
    const entry = [...this.#entries.values()].find(({ upload, record }) => upload.paused && isSame(file, record));
    if (entry) this.#put(entry.record, file);
    return Boolean(entry);
  }

  #put(record, file) {
    const { id, name, size: bytes, sent } = record;
    const step_name = file
      ? t('Waiting to upload')
      : t('{sent} of {size} uploaded: drop the file again to continue', { sent: size(sent), size: size(bytes) });
    const upload = {
      upload: true,
      id,
      status: 'uploading',
      waiting: true,
      paused: !file,
      input_filename: name,
      progress: { step_name, percent: percentOf(record) },
      detail: file ? size(bytes) : '',
    };
    this.#entries.set(id, { upload, file, record, abort: new AbortController(), running: false, rememberedAt: 0 });
    if (file) remember(record);
    this.#listener.onChange();
  }

  #discard(id) {
    this.#entries.delete(id);
    forget(id);
    this.#listener.onChange();
  }

  #startNext() {
    const entries = [...this.#entries.values()];
    const waiting = entries.filter(({ upload, running }) => upload.waiting && !upload.paused && !running);
    const places = AT_A_TIME - entries.filter(({ running }) => running).length;
    for (const entry of waiting.slice(0, Math.max(0, places))) this.#send(entry);
  }

  async #send(entry) {
    const { signal } = entry.abort;
    entry.running = true;
    this.#change(entry, { waiting: false });
    for (let failures = 0, before = -1; !signal.aborted;) {
      try {
        this.#arrived(entry, await this.#attempt(entry));
        break;
      } catch (error) {
        if (signal.aborted) break;
        if (GONE.has(error.status) && entry.record.url) {
          Object.assign(entry.record, { url: undefined, sent: 0 });
          continue;
        }
        if (error.status && !PASSING.has(error.status)) {
          this.#fail(entry, error);
          break;
        }
        if (!(await isReadable(entry.file))) {
          this.#fail(entry, { message: t('This file was changed or deleted after you chose it. Choose it again.') });
          break;
        }
        failures = entry.record.sent > before ? 1 : failures + 1;
        before = entry.record.sent;
        this.#progress(entry, t('The connection was lost. The upload continues by itself.'));
        await pause(error.retryAfter || Math.min(MAX_PAUSE_S, 2 ** (failures - 1)), signal);
      }
    }
    entry.running = false;
    this.#startNext();
  }

  /** Creates the upload or asks for its offset, and sends what is missing. */
  async #attempt(entry) {
    const { file, record, abort: { signal } } = entry;
    let state;
    if (record.url) {
      state = await stateOf(record.url, signal);
    } else {
      state = await create(file, record.metadata, signal);
      record.url = state.url;
    }
    this.#sent(entry, state.offset);
    remember(record);
    if (!state.jobId) {
      state = await append(record.url, file, state.offset, (sent) => this.#sent(entry, sent), signal);
    }
    return state;
  }

  #arrived(entry, { jobId, batchId }) {
    const { record: { id, name, metadata: { pipeline } } } = entry;
    this.#discard(id);
    const data = { kind: pipeline, pipeline, input_filename: name, status: 'queued', created_at: new Date().toISOString() };
    this.#listener.onArrived({ type: 'job_created', job_id: jobId, batch_id: batchId, data });
  }

  #sent(entry, sent) {
    entry.record.sent = sent;
    if (Date.now() - entry.rememberedAt > REMEMBER_MS) {
      entry.rememberedAt = Date.now();
      remember(entry.record);
    }
    this.#progress(entry, sent === entry.record.size ? t('Waiting for the server') : t('Uploading'));
  }

  #progress(entry, step_name) {
    const { sent, size: bytes } = entry.record;
    const detail = sent === bytes ? size(bytes) : t('{sent} of {size}', { sent: size(sent), size: size(bytes) });
    this.#change(entry, { progress: { step_name, percent: percentOf(entry.record) }, detail });
  }

  #fail(entry, { message, status }) {
    const refused = REFUSALS.has(status);
    this.#change(entry, { status: 'failed', waiting: false, error: message, refused });
    if (refused) { // the server has deleted the upload
      Object.assign(entry.record, { url: undefined, sent: 0 });
      this.#change(entry, { progress: { ...entry.upload.progress, percent: 0 } });
      forget(entry.record.id);
    }
    this.#listener.onFailed(entry.upload);
  }

  #change(entry, fields) {
    entry.upload = { ...entry.upload, ...fields };
    this.#listener.onChange();
  }
}

/** Asks the server for the offset, unless it cannot be reached. */
async function isUnfinished(record) {
  if (!record.url) return true;
  try {
    const { offset, jobId } = await stateOf(record.url);
    record.sent = offset;
    if (!jobId) return true;
  } catch ({ status }) {
    if (!status) return true;
    if (!GONE.has(status)) return false; // such as a key that may not upload
  }
  forget(record.id);
  return false;
}

const percentOf = ({ sent, size: bytes }) => (bytes ? Math.floor((100 * sent) / bytes) : 0);

/** `crypto.randomUUID` exists only under HTTPS and on this machine. */
const newId = () => crypto.getRandomValues(new Uint32Array(4)).join('-');

/** The batch of files that were chosen together: the name is that of their folder or of the first file. */
function batchOf(files, folder) {
  if (files.length === 1) return {};
  const name = folder || t('{name} and {n} more', { name: files[0].name, n: files.length - 1 });
  return { batch: newId(), batch_name: name.slice(0, 255) };
}

async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

/** Waits, but not after the browser is online again or the upload is cancelled. */
const pause = (seconds, signal) => new Promise((resolve) => {
  const timer = setTimeout(done, 1000 * seconds);
  window.addEventListener('online', done, { once: true });
  signal.addEventListener('abort', done, { once: true });
  function done() {
    clearTimeout(timer);
    window.removeEventListener('online', done);
    resolve();
  }
});
