/** The files on their way to the server, a few at a time; one that has arrived is a job, and gone from here. */

import { convert } from './api.js';
import { size } from './format.js';

const AT_A_TIME = 2;

/** The page sends its files to this one. */
const PIPELINE = 'pdf';

/** Too large, of another type, not valid: what the server says of a file, and not of the moment. */
const REFUSALS = new Set([413, 415, 422]);

/**
 * A file that is not a job yet, in the shape a card shows. Never changed in place.
 * @typedef {object} Upload
 * @property {true} upload
 * @property {string} id
 * @property {'uploading'|'failed'} status
 * @property {string} input_filename
 * @property {{step_name: string, percent: number}} progress
 * @property {string} detail how much of the file has been sent
 * @property {boolean} [waiting] for its turn to be sent
 * @property {string} [error]
 * @property {boolean} [refused] for what it is: sending it again would change nothing
 *
 * @typedef {{upload: Upload, file: File, options: object, abort: AbortController, running: boolean}} Entry
 */

export class Uploads {
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  #next = 1;
  #listener;

  /**
   * @param {object} listener
   * @param {() => void} listener.onChange
   * @param {(message: object) => void} listener.onArrived gets the `job_created` that the stream sends too,
   *   maybe sooner, maybe later
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

  /** @param {Iterable<File>} files @param {object} options of the conversion */
  add(files, options) {
    for (const file of files) this.#put(`upload-${this.#next++}`, file, options);
    this.#startNext();
  }

  /** Sends a file that failed again, from its beginning. */
  retry(id) {
    const { file, options } = this.#entries.get(id);
    this.#put(id, file, options);
    this.#startNext();
  }

  /** Forgets a file, whether it waits, is being sent or failed. */
  remove(id) {
    this.#entries.get(id)?.abort.abort();
    this.#entries.delete(id);
    this.#startNext();
    this.#listener.onChange();
  }

  #put(id, file, options) {
    const upload = {
      upload: true,
      id,
      status: 'uploading',
      waiting: true,
      input_filename: file.name,
      progress: { step_name: 'Waiting to upload', percent: 0 },
      detail: size(file.size),
    };
    this.#entries.set(id, { upload, file, options, abort: new AbortController(), running: false });
    this.#listener.onChange();
  }

  #startNext() {
    const entries = [...this.#entries.values()];
    const waiting = entries.filter(({ upload, running }) => upload.status === 'uploading' && !running);
    const places = AT_A_TIME - entries.filter(({ running }) => running).length;
    for (const entry of waiting.slice(0, Math.max(0, places))) this.#send(entry);
  }

  async #send(entry) {
    const { file, options, abort } = entry;
    const { id, input_filename } = entry.upload;
    entry.running = true;
    this.#change(entry, { waiting: false, progress: { step_name: 'Uploading', percent: 0 } });
    try {
      const onSent = (sent, total) => this.#sent(entry, sent, total);
      const { job_id, ...data } = await convert(file, options, onSent, abort.signal);
      this.#entries.delete(id);
      const about = { kind: PIPELINE, pipeline: PIPELINE, input_filename };
      this.#listener.onArrived({ type: 'job_created', job_id, data: { ...about, ...data } });
    } catch (error) {
      if (!abort.signal.aborted) this.#fail(entry, error);
    }
    entry.running = false;
    this.#startNext();
  }

  #sent(entry, sent, total) {
    const all = sent === total; // of the form, which is a little more than the file
    const bytes = entry.file.size;
    const step_name = all ? 'Waiting for the server' : 'Uploading';
    this.#change(entry, {
      progress: { step_name, percent: Math.floor((100 * sent) / total) },
      detail: all ? size(bytes) : `${size(Math.min(sent, bytes))} of ${size(bytes)}`,
    });
  }

  #fail(entry, { message, status }) {
    this.#change(entry, { status: 'failed', error: message, refused: REFUSALS.has(status) });
    this.#listener.onFailed(entry.upload);
  }

  #change(entry, fields) {
    entry.upload = { ...entry.upload, ...fields };
    this.#listener.onChange();
  }
}
