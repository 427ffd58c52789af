/** The files being sent to the server. Files chosen together are one upload, and become one batch. */

import { submit } from './api.js';
import { count, size } from './format.js';

const AT_A_TIME = 2;

/** The server's maximum of files in one batch. */
const FILES_IN_BATCH = 100;

/** The pipeline for the files of the page. */
const PIPELINE = 'pdf';

/** Statuses for a single bad file: too large, or of another type. */
const BAD_FILE = new Set([413, 415]);

/** Statuses that a retry would not change: the same, and invalid options. */
const REFUSALS = new Set([...BAD_FILE, 422]);

/**
 * Files that are not yet jobs, as a card shows them. Never changed in place.
 * @typedef {object} Upload
 * @property {true} upload
 * @property {string} id
 * @property {'uploading'|'failed'} status
 * @property {string} input_filename the name of the file, or the number of files
 * @property {{step_name: string, percent: number}} progress
 * @property {string} detail the size sent so far
 * @property {boolean} [waiting] whether it waits to be sent
 * @property {string} [error]
 * @property {boolean} [refused] whether a retry would be rejected again
 *
 * @typedef {object} Entry
 * @property {Upload} upload
 * @property {File[]} files
 * @property {number} bytes the size of all files
 * @property {object} options
 * @property {string} key its Idempotency-Key
 * @property {AbortController} abort
 * @property {boolean} running
 */

export class Uploads {
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  #next = 1;
  #listener;

  /**
   * @param {object} listener
   * @param {() => void} listener.onChange
   * @param {(message: object) => void} listener.onArrived receives the `job_created` of a single file. The stream
   *   sends it too, before or after
   * @param {() => void} listener.onBatchArrived
   * @param {(upload: Upload) => void} listener.onFailed
   */
  constructor(listener) {
    this.#listener = listener;
  }

  /** @returns {Upload[]} newest first */
  newestFirst() {
    return [...this.#entries.values()].map((entry) => entry.upload).reverse();
  }

  get busy() {
    return [...this.#entries.values()].some(({ upload }) => upload.status === 'uploading');
  }

  /** @param {File[]} files chosen together @param {object} options of the conversion */
  add(files, options) {
    for (let at = 0; at < files.length; at += FILES_IN_BATCH) {
      this.#put(`upload-${this.#next++}`, files.slice(at, at + FILES_IN_BATCH), options, newKey());
    }
    this.#startNext();
  }

  /** Sends a failed upload again, from its beginning. */
  retry(id) {
    const { files, options, key } = this.#entries.get(id);
    this.#put(id, files, options, key);
    this.#startNext();
  }

  /** Removes an upload, whether it is waiting, being sent or failed. */
  remove(id) {
    this.#entries.get(id)?.abort.abort();
    this.#entries.delete(id);
    this.#startNext();
    this.#listener.onChange();
  }

  #put(id, files, options, key) {
    const bytes = files.reduce((sum, file) => sum + file.size, 0);
    const upload = {
      upload: true,
      id,
      status: 'uploading',
      waiting: true,
      input_filename: files.length === 1 ? files[0].name : `Batch of ${count(files.length, 'file')}`,
      progress: { step_name: 'Waiting to upload', percent: 0 },
      detail: size(bytes),
    };
    this.#entries.set(id, { upload, files, bytes, options, key, abort: new AbortController(), running: false });
    this.#listener.onChange();
  }

  #startNext() {
    const entries = [...this.#entries.values()];
    const waiting = entries.filter(({ upload, running }) => upload.status === 'uploading' && !running);
    const places = AT_A_TIME - entries.filter(({ running }) => running).length;
    for (const entry of waiting.slice(0, Math.max(0, places))) this.#send(entry);
  }

  async #send(entry) {
    const { files, options, key, abort } = entry;
    const { id, input_filename } = entry.upload;
    entry.running = true;
    this.#change(entry, { waiting: false, progress: { step_name: 'Uploading', percent: 0 } });
    try {
      const onSent = (sent, total) => this.#sent(entry, sent, total);
      const { job_id, ...data } = await submit(files, options, key, onSent, abort.signal);
      this.#entries.delete(id);
      const about = { kind: PIPELINE, pipeline: PIPELINE, input_filename };
      if (job_id) this.#listener.onArrived({ type: 'job_created', job_id, data: { ...about, ...data } });
      else this.#listener.onBatchArrived();
    } catch (error) {
      if (!abort.signal.aborted) this.#fail(entry, error);
    }
    entry.running = false;
    this.#startNext();
  }

  #sent(entry, sent, total) {
    const all = sent === total; // of the form, which is slightly larger than the file
    const { bytes } = entry;
    const step_name = all ? 'Waiting for the server' : 'Uploading';
    this.#change(entry, {
      progress: { step_name, percent: Math.floor((100 * sent) / total) },
      detail: all ? size(bytes) : `${size(Math.min(sent, bytes))} of ${size(bytes)}`,
    });
  }

  /** A batch with a bad file is rejected as a whole. Each file is then sent alone, so that only the bad file fails. */
  #fail(entry, { message, status }) {
    if (entry.files.length > 1 && BAD_FILE.has(status)) {
      this.#entries.delete(entry.upload.id);
      for (const file of entry.files) this.add([file], entry.options);
      return;
    }
    this.#change(entry, { status: 'failed', error: message, refused: REFUSALS.has(status) });
    this.#listener.onFailed(entry.upload);
  }

  #change(entry, fields) {
    entry.upload = { ...entry.upload, ...fields };
    this.#listener.onChange();
  }
}

/** `crypto.randomUUID` exists only under HTTPS and on this machine. */
const newKey = () => crypto.getRandomValues(new Uint32Array(4)).join('-');
