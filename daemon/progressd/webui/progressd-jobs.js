/** `<progressd-jobs>`: the newest jobs, live, on any page. See docs/embedding.md. */

import { applied, getJson } from './progressd.js';
import { ProgressdElement, sentenceFor } from './progressd-element.js';
import { Rows } from './progressd-rows.js';
import { t } from './text.js';

const LIMIT = 10;

/** A burst of messages about unknown jobs is one request. */
const RELOAD_MS = 500;

const CONTENT = `
<div class="card" part="card" data-part="card">
  <ul part="jobs" data-part="jobs" hidden></ul>
  <p class="small" part="empty" data-part="empty" hidden></p>
  <p class="message" part="message" data-part="message" role="status" hidden></p>
</div>`;

export class ProgressdJobs extends ProgressdElement {
  static observedAttributes = ['kind', 'label', 'status', 'limit'].reduce(
    (names, name) => [...names, ...this.reflects(name).filter((each) => !names.includes(each))], [],
  );

  #jobs = null; // newest first
  #rows;
  #loading = new AbortController();
  #reloading = 0;

  constructor() {
    super(CONTENT, Rows.sheet);
    this.#rows = new Rows(this.parts);
  }

  /** The jobs as in `GET /api/jobs`, newest first; null until they are known. */
  get state() {
    return this.#jobs;
  }

  begin() {
    this.#jobs = null;
    return { jobs: true, interval: 0.5 };
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    clearTimeout(this.#reloading);
    this.#reloading = 0;
  }

  async live() {
    this.#loading.abort();
    const { signal } = this.#loading = new AbortController();
    const query = new URLSearchParams({ limit: this.getAttribute('limit') ?? LIMIT });
    for (const name of ['kind', 'label', 'status']) {
      const value = this.getAttribute(name);
      if (value) query.set(name, value);
    }
    try {
      const { token: source, key } = this;
      const token = typeof source === 'function' ? await source() : source;
      const { jobs } = await getJson(this.url, `api/jobs?${query}`, { token, key, signal });
      if (signal.aborted) return;
      this.#jobs = jobs;
      this.changed();
    } catch (error) {
      if (!signal.aborted && !error.transient) this.tell(sentenceFor(error, this.url));
    }
  }

  /** The server selects and sorts, so a change of what is listed is a new request. */
  receive(message) {
    const { type, job_id: id } = message;
    if (type === 'resync') this.#reloadSoon();
    if (!id || !this.#jobs) return false;
    const place = this.#jobs.findIndex((job) => job.id === id);
    const isListChange = type === 'job_created' || type === 'job_deleted' || (type === 'status_change' && this.getAttribute('status'));
    if (isListChange) this.#reloadSoon();
    if (place < 0) return false;
    const before = this.#jobs[place];
    const after = applied(before, message);
    if (after === before) return false;
    this.#jobs = this.#jobs.with(place, after);
    return true;
  }

  #reloadSoon() {
    this.#reloading ||= setTimeout(() => {
      this.#reloading = 0;
      this.live();
    }, RELOAD_MS);
  }

  draw() {
    const { card, empty, message } = this.parts;
    card.hidden = !this.#jobs && message.hidden;
    if (!this.#jobs) return;
    const shown = this.#jobs.map(({ id, name, input_filename: file, kind, status, progress }) => (
      { id, name: name || file || kind, status, progress }));
    this.#rows.show(shown);
    empty.textContent = t('No jobs.');
    empty.hidden = shown.length > 0;
  }
}

customElements.define('progressd-jobs', ProgressdJobs);
