/** The files on their way to the server; those that were given together are one upload, and become one batch. */

import { submit } from './api.js';
import { count, size } from './format.js';

const AT_A_TIME = 2;

/** The server takes no more files in one batch. */
const FILES_IN_BATCH = 100;

/** The page sends its files to this one. */
const PIPELINE = 'pdf';

/** Too large, of another type: what the server says of a single file. */
const BAD_FILE = new Set([413, 415]);

/** The same, or options that are not valid: sending it again would change nothing. */
const REFUSALS = new Set([...BAD_FILE, 422]);

/**
 * Files that are not jobs yet, in the shape a card shows. Never changed in place.
 * @typedef {object} Upload
 * @property {true} upload
 * @property {string} id
 * @property {'uploading'|'failed'} status
 * @property {string} input_filename of the file, or how many there are
 * @property {{step_name: string, percent: number}} progress
 * @property {string} detail how much has been sent
 * @property {boolean} [waiting] for its turn to be sent
 * @property {string} [error]
 * @property {boolean} [refused] for what it is: sending it again would change nothing
 *
 * @typedef {object} Entry
 * @property {Upload} upload
 * @property {File[]} files
 * @property {number} bytes of all files
 * @property {object} options
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
   * @param {(message: object) => void} listener.onArrived gets the `job_created` of a single file that the stream sends
   *   too, maybe sooner, maybe later
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

  /** @param {File[]} files given together @param {object} options of the conversion */
  add(files, options) {
    for (let at = 0; at < files.length; at += FILES_IN_BATCH) {
      this.#put(`upload-${this.#next++}`, files.slice(at, at + FILES_IN_BATCH), options);
    }
    this.#startNext();
  }

  /** Sends an upload that failed again, from its beginning. */
  retry(id) {
    const { files, options } = this.#entries.get(id);
    this.#put(id, files, options);
    this.#startNext();
  }

  /** Forgets an upload, whether it waits, is being sent or failed. */
  remove(id) {
    this.#entries.get(id)?.abort.abort();
    this.#entries.delete(id);
    this.#startNext();
    this.#listener.onChange();
  }

  #put(id, files, options) {
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
    this.#entries.set(id, { upload, files, bytes, options, abort: new AbortController(), running: false });
    this.#listener.onChange();
  }

  #startNext() {
    const entries = [...this.#entries.values()];
    const waiting = entries.filter(({ upload, running }) => upload.status === 'uploading' && !running);
    const places = AT_A_TIME - entries.filter(({ running }) => running).length;
    for (const entry of waiting.slice(0, Math.max(0, places))) this.#send(entry);
  }

  async #send(entry) {
    const { files, options, abort } = entry;
    const { id, input_filename } = entry.upload;
    entry.running = true;
    this.#change(entry, { waiting: false, progress: { step_name: 'Uploading', percent: 0 } });
    try {
      const onSent = (sent, total) => this.#sent(entry, sent, total);
      const { job_id, ...data } = await submit(files, options, onSent, abort.signal);
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
    const all = sent === total; // of the form, which is a little more than the file
    const { bytes } = entry;
    const step_name = all ? 'Waiting for the server' : 'Uploading';
    this.#change(entry, {
      progress: { step_name, percent: Math.floor((100 * sent) / total) },
      detail: all ? size(bytes) : `${size(Math.min(sent, bytes))} of ${size(bytes)}`,
    });
  }

  /** A batch with a bad file is refused as a whole: each file is then sent by itself, so that only the bad one fails. */
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
