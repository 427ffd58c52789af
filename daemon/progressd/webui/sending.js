/** What sends files: the form with the options, and the uploads. It is loaded where files may be sent. */

import { Intake } from './intake.js';
import { mayHaveUploads } from './settings.js';

export class Sending {
  /** From the first file on. @type {?import('./uploads.js').Uploads} */
  uploads = null;
  #intake;
  #load;

  /**
   * @param {HTMLFormElement} form
   * @param {() => Promise<import('./uploads.js').Uploads>} load
   * @param {(error: Error) => void} onError
   */
  constructor(form, load, onError) {
    this.#load = async () => { this.uploads ??= await load(); };
    this.#intake = new Intake(form, (...chosen) => {
      this.#load().then(() => this.uploads.add(...chosen)).catch(onError);
    }, onError);
  }

  /** @param {import('./intake.js').Pipeline[]} pipelines of the server */
  async update(pipelines) {
    this.#intake.update(pipelines);
    if (!this.uploads && !mayHaveUploads()) return;
    await this.#load();
    await this.uploads.restore();
  }
}
