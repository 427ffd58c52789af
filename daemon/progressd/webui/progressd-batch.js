/** `<progressd-batch batch="ID">`: the progress of a batch and of its jobs, live, on any page. See docs/embedding.md. */

import { setText } from './dom.js';
import { percentage } from './format.js';
import { batchPath, isFinished } from './job.js';
import { countsOf, verdictOf } from './job-text.js';
import { applied, getJson } from './progressd.js';
import { ProgressdElement, sentenceFor, setBar } from './progressd-element.js';
import { t } from './text.js';

const CONTENT = `
<div class="card" part="card" data-part="card">
  <div class="line">
    <span class="name grow" part="name" data-part="name"></span>
    <span class="figure" part="figure" data-part="figure"></span>
  </div>
  <div class="bar" part="bar" data-part="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100">
    <div class="fill" part="fill"></div>
  </div>
  <p class="foot small" part="step" data-part="step"></p>
  <ul part="jobs" data-part="jobs" hidden></ul>
  <p class="message" part="message" data-part="message" role="status" hidden></p>
</div>`;

const ROW = '<span class="grow" part="job-name"></span>' +
  '<span class="bar" part="job-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100">' +
  '<span class="fill" part="job-fill"></span></span><span class="figure" part="job-figure"></span>';

const sheet = new CSSStyleSheet();
sheet.replaceSync(`
ul { display: grid; gap: .125em; margin-top: .25em; }
li { --state: var(--idle); display: grid; grid-template-columns: minmax(0, 1fr) 30% 6em; gap: .75em; align-items: center; font-size: .875em; }
li .fill { display: block; }
li .figure { font-weight: 400; font-size: inherit; text-align: right; }
li[data-status=processing] { --state: var(--running); }
li[data-status=completed] { --state: var(--done); }
li[data-status=failed] { --state: var(--failed); }
@container (max-width: 24em) { li { grid-template-columns: minmax(0, 1fr) 4em; } li .bar { display: none; } }
`);

export class ProgressdBatch extends ProgressdElement {
  static observedAttributes = this.reflects('batch');

  #batch = null; // as in `GET /api/batch/ID`
  #jobs = new Map();
  #rows = new Map();
  #loading = new AbortController();

  constructor() {
    super(CONTENT, sheet);
  }

  /** `{ batch, jobs }` as in `GET /api/batch/ID` and `…/jobs`; null until they are known. */
  get state() {
    return this.#batch && { batch: this.#batch, jobs: [...this.#jobs.values()] };
  }

  begin() {
    const batch = this.getAttribute('batch');
    if (this.#batch?.batch_id !== batch) this.#forget();
    return batch ? { batch } : null;
  }

  #forget() {
    this.#batch = null;
    this.#jobs.clear();
    this.#rows.clear();
    this.parts.jobs.replaceChildren();
  }

  async live() {
    this.#loading.abort();
    const { signal } = this.#loading = new AbortController();
    const path = batchPath(this.getAttribute('batch'));
    try {
      const { token: source, key } = this;
      const token = typeof source === 'function' ? await source() : source;
      const how = { token, key, signal };
      const [batch, { jobs }] = await Promise.all([getJson(this.url, path, how), getJson(this.url, `${path}/jobs`, how)]);
      if (signal.aborted) return;
      this.#batch = batch;
      for (const job of jobs) {
        const known = this.#jobs.get(job.job_id);
        if (!known || !isFinished(known) || isFinished(job)) this.#jobs.set(job.job_id, job);
      }
      this.changed();
    } catch (error) {
      if (!signal.aborted && this.#batch === null && !error.transient) this.tell(sentenceFor(error, this.url));
    }
  }

  receive(message) {
    const { type, job_id: id, data } = message;
    if (type === 'resync') {
      this.#forget();
      this.live();
    }
    if (type === 'batch_completed') {
      this.live().then(() => this.changed('end'));
      return false;
    }
    if (type === 'batch_progress') {
      if (this.#batch) this.#batch = { ...this.#batch, progress: data };
      return this.#batch !== null;
    }
    const job = this.#jobs.get(id);
    const after = job && applied(job, message);
    if (after === job) return false;
    this.#jobs.set(id, after);
    return true;
  }

  draw() {
    const { card, name, figure, bar, step, jobs: list } = this.parts;
    const batch = this.#batch;
    card.hidden = !batch && this.parts.message.hidden;
    for (const part of [bar, step, name.parentElement]) part.hidden = !batch;
    if (!batch) return;
    const { completed = 0, failed = 0, cancelled = 0, total } = batch.progress;
    const isOver = completed + failed + cancelled >= total;
    this.dataset.status = card.dataset.status = isOver ? batch.status : completed || batch.progress.processing ? 'processing' : batch.status;
    const jobs = [...this.#jobs.values()];
    const sum = jobs.reduce((all, job) => all + shareOf(job), 0);
    const percent = isOver ? 100 : Math.floor(100 * sum / (total || 1));
    const title = t('{n} file | {n} files', { n: total });
    const verdict = isOver ? t('Done') : percentage(percent);
    const counts = countsOf(batch.progress);
    setText(name, title);
    setText(figure, verdict);
    setText(step, counts);
    setBar(bar, percent, t('Progress of {name}', { name: title }), [verdict, counts].filter(Boolean).join(', '));
    for (const job of jobs) this.#drawJob(job);
    list.hidden = !jobs.length;
  }

  #drawJob(job) {
    let row = this.#rows.get(job.job_id);
    if (!row) {
      row = document.createElement('li');
      row.innerHTML = ROW;
      this.#rows.set(job.job_id, row);
      this.parts.jobs.append(row);
    }
    const [name, bar, figure] = row.children;
    const percent = Math.round(100 * shareOf(job));
    const title = job.filename || t('Job');
    const verdict = verdictOf(job.status) ?? percentage(percent);
    row.dataset.status = job.status;
    setText(name, title);
    name.title = title;
    setText(figure, verdict);
    setBar(bar, percent, t('Progress of {name}', { name: title }), verdict);
  }
}

const shareOf = ({ status, progress }) => (isFinished({ status }) ? 1 : (progress?.percent ?? 0) / 100);

customElements.define('progressd-batch', ProgressdBatch);
