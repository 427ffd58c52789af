/** What sends files, if the server has pipelines: the form with the options, and the uploads. Loaded after the list. */

import { listPipelines } from './api.js';
import { Intake } from './intake.js';
import { lazily } from './lazy.js';
import { mayHaveUploads } from './settings.js';

export class Sending {
  /** From the first file on. @type {?import('./uploads.js').Uploads} */
  uploads = null;
  /** Whether files can be sent. */
  isReady = false;
  #form;
  #intake;
  #listener;
  #isUpdating = false;

  /**
   * @param {HTMLFormElement} form
   * @param {object} listener as `Uploads` has it, and:
   * @param {(error: Error) => void} listener.onError
   */
  constructor(form, listener) {
    this.#form = form;
    this.#listener = listener;
    this.#intake = new Intake(form, (...chosen) => {
      this.#load().then(() => this.uploads.add(...chosen)).catch(listener.onError);
    }, listener.onError);
  }

  /** Shows the pipelines that the server has now, and the uploads that a reload interrupted. */
  async update() {
    if (this.#isUpdating) return;
    this.#isUpdating = true;
    try {
      const pipelines = await listPipelines();
      this.isReady = pipelines.length > 0;
      this.#intake.update(pipelines);
      this.#form.toggleAttribute('data-without-pipelines', !this.isReady);
      if (!this.isReady || !(this.uploads || mayHaveUploads())) return;
      await this.#load();
      await this.uploads.restore();
    } finally {
      this.#isUpdating = false;
    }
  }

  async #load() {
    const { Uploads } = await lazily(() => import('./uploads.js'), false); // a reload would lose the files
    this.uploads ??= new Uploads(this.#listener);
  }
}
