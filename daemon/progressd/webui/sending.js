/** What sends files: the form with the options, and the uploads. It is loaded where files may be sent. */

import { Intake } from './intake.js';
import { Uploads } from './uploads.js';

export class Sending {
  /** @type {Uploads} */
  uploads;
  #intake;

  /** @param {HTMLFormElement} form @param {object} listener as `Uploads` has it */
  constructor(form, listener) {
    this.uploads = new Uploads(listener);
    this.#intake = new Intake(form, (...chosen) => this.uploads.add(...chosen));
  }

  /** @param {import('./intake.js').Pipeline[]} pipelines of the server */
  update(pipelines) {
    this.#intake.update(pipelines);
    this.uploads.restore();
  }
}
