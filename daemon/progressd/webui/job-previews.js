/** The previews on the page of a job: those that the server has kept, and then the live ones. */

import { byId } from './dom.js';
import { jobPath } from './job.js';
import { request, send } from './pass.js';
import { PreviewStrip, sourceOf } from './previews.js';

/** @typedef {import('./jobs.js').Preview} Preview */

export class JobPreviews {
  #id;
  #strip = new PreviewStrip(byId('previews'));
  #live = new Set(); // pages

  /** @param {string} id the job */
  constructor(id) {
    this.#id = id;
  }

  /** Requests the previews that the server has kept. Live ones are newer. */
  async load() {
    const { previews } = await request(jobPath(this.#id, '/previews')).catch(() => ({ previews: [] }));
    for (const preview of previews) {
      const { page_number: page } = preview;
      if (this.#live.has(page)) continue;
      const source = await this.#picture(page).catch(() => null);
      if (source && !this.#live.has(page)) this.#show(preview, source);
    }
  }

  /** @param {Preview} preview of the stream */
  add(preview) {
    this.#live.add(preview.page_number);
    this.#show(preview, sourceOf(preview));
  }

  clear() {
    this.#live.clear();
    this.#strip.clear();
    byId('previews-part').hidden = true;
  }

  #show(preview, source) {
    byId('previews-part').hidden = false;
    this.#strip.add(preview, source);
  }

  /** An image cannot send the key, so the picture becomes part of the page. */
  async #picture(page) {
    const picture = await (await send(jobPath(this.#id, `/previews/${page}`))).blob();
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(picture);
    });
  }
}
