/** `<progressd-job job="ID">`: the progress of one job, live, on any page. See docs/embedding.md. */

import { duration, rate, remaining, steps, stopwatch } from './format.js';
import { applied, getJson } from './progressd.js';
import { ProgressdElement, sentenceFor, setBar, setText } from './progressd-element.js';
import { sentence, t } from './text.js';

const FINISHED = new Set(['completed', 'failed', 'cancelled']);

const CONTENT = `
<div class="card" part="card" data-part="card">
  <div class="line">
    <span class="name grow" part="name" data-part="name"></span>
    <span class="figure" part="figure" data-part="figure"></span>
  </div>
  <div class="bar" part="bar" data-part="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100">
    <div class="fill" part="fill"></div>
  </div>
  <div class="line foot small">
    <span class="grow" part="step" data-part="step"></span>
    <span part="rate" data-part="rate"></span>
    <span part="time" data-part="time"></span>
    <a part="result" data-part="result" hidden></a>
  </div>
  <p class="message" part="message" data-part="message" role="status" hidden></p>
</div>`;

export class ProgressdJob extends ProgressdElement {
  static observedAttributes = this.reflects('job');

  #job = null;
  #clock = 0;
  #loading = new AbortController();

  constructor() {
    super(CONTENT);
    this.parts.result.addEventListener('click', (event) => this.#download(event));
  }

  /** The job as in `GET /api/jobs/ID`; null until it is known. Never changed in place. */
  get state() {
    return this.#job;
  }

  begin() {
    const job = this.getAttribute('job');
    if (this.#job?.id !== job) this.#job = null;
    return job ? { job } : null;
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    clearInterval(this.#clock);
    this.#clock = 0;
  }

  /** The messages of the stream do not have the name and the kind of the job. */
  async live() {
    this.#loading.abort();
    const { signal } = this.#loading = new AbortController();
    const { token: source, key } = this;
    try {
      const token = typeof source === 'function' ? await source() : source;
      const job = await getJson(this.url, `api/jobs/${encodeURIComponent(this.getAttribute('job'))}`, { token, key, signal });
      if (signal.aborted) return;
      const wasFinished = this.#job && FINISHED.has(this.#job.status);
      if (wasFinished && !FINISHED.has(job.status)) return; // older than the messages
      const isNews = JSON.stringify(this.#job) !== JSON.stringify(job);
      this.#job = job;
      if (isNews) this.changed();
    } catch (error) {
      if (!signal.aborted && this.#job === null && !error.transient) this.tell(sentenceFor(error, this.url));
    }
  }

  /** @returns {boolean} whether the job has changed */
  receive(message) {
    const { type, data } = message;
    if (type === 'resync') {
      this.#job = null;
      this.live();
    }
    const before = this.#job ?? { id: this.getAttribute('job'), status: 'queued' };
    const after = applied(before, message);
    if (after === before) return false;
    this.#job = after;
    const isEnd = type === 'completed' || type === 'error' || data.new_status === 'cancelled';
    if (isEnd) {
      this.live();
      queueMicrotask(() => this.changed('end'));
    }
    return true;
  }

  draw() {
    const job = this.#job;
    const { card, name, figure, bar, step, rate: speed, result } = this.parts;
    card.hidden = !job && this.parts.message.hidden;
    for (const part of [bar, name.parentElement, step.parentElement]) part.hidden = !job;
    if (!job) return;
    const { status, progress = {} } = job;
    this.dataset.status = card.dataset.status = status;
    card.toggleAttribute('data-stalled', status === 'processing' && Boolean(progress.stalled));
    const title = job.name || job.input_filename || job.kind || t('Job');
    const openEnded = status === 'processing' && !progress.total_steps && !progress.percent;
    const percent = status === 'completed' ? 100 : progress.percent ?? 0;
    const verdict = verdictOf(status) ?? (openEnded ? '' : percentText(percent, card.lang));
    setText(name, title);
    name.title = title;
    setText(figure, verdict);
    setText(step, stepOf(job));
    setText(speed, status === 'processing' ? rate(progress.rate, progress.unit) : '');
    setBar(bar, openEnded ? null : percent, t('Progress of {name}', { name: title }), [verdict, stepOf(job)].filter(Boolean).join(', '));
    const output = status === 'completed' && (job.download_url ?? job.output_path);
    const href = output && this.#resultUrl(output);
    result.hidden = !href;
    if (href) {
      result.href = href;
      setText(result, output.startsWith('/') ? t('Download') : t('Open result'));
    }
    this.#tick();
    const runs = status === 'processing';
    if (runs && !this.#clock) this.#clock = setInterval(() => document.hidden || this.#tick(), 1000);
    if (!runs) this.#clock = clearInterval(this.#clock) ?? 0;
  }

  #tick() {
    setText(this.parts.time, this.#job && !this.parts.card.hasAttribute('data-away') ? timeOf(this.#job) : '');
  }

  /** Only addresses of the web. The daemon's own need the token. */
  #resultUrl(output) {
    const url = new URL(output, this.url);
    if (!['http:', 'https:'].includes(url.protocol)) return null;
    const token = this.getAttribute('token');
    if (output.startsWith('/') && token) url.searchParams.set('token', token);
    return url.href;
  }

  /** A link cannot carry a key, and a token may have expired. */
  async #download(event) {
    const { token: source, key, url } = this;
    const isOwn = (this.#job.download_url ?? this.#job.output_path).startsWith('/');
    if (!isOwn || typeof source === 'string' || !(key || source)) return;
    event.preventDefault();
    try {
      const path = `api/jobs/${encodeURIComponent(this.#job.id)}`;
      const token = source ? await source() : (await getJson(url, `${path}/token`, { key, method: 'POST' })).token;
      const target = new URL(`${path}/download`, url);
      target.searchParams.set('token', token);
      location.assign(target);
    } catch (error) {
      this.tell(sentenceFor(error, url));
    }
  }
}

export function verdictOf(status) {
  if (status === 'queued') return t('Queued');
  if (status === 'completed') return t('Done');
  if (status === 'failed') return t('Failed');
  return status === 'cancelled' ? t('Cancelled') : undefined;
}

export const percentText = (percent, language) =>
  new Intl.NumberFormat(language, { style: 'percent' }).format(percent / 100);

function stepOf({ status, progress = {}, error, page_count: pages }) {
  if (status === 'failed' && error) return sentence(error);
  if (status === 'completed') return pages ? t('{n} page | {n} pages', { n: pages }) : '';
  if (status === 'queued') return '';
  const { step_name: name = '', current_step: step, total_steps: total, unit, phase = '' } = progress;
  const part = phase && !name.startsWith(phase) ? phase : '';
  return [part, name, steps(step, total, unit)].filter(Boolean).join(' · ');
}

function timeOf({ status, started_at: started, elapsed_seconds: seconds, progress = {}, progress_at }) {
  if (status === 'completed' && seconds != null) return duration(seconds);
  if (status !== 'processing') return '';
  if (progress.stalled) return t('no sign of life');
  const { eta, time = progress_at } = progress;
  const passed = time ? (Date.now() - Date.parse(time)) / 1000 : 0;
  if (eta) return remaining(eta.seconds - passed, eta.low - passed, eta.high - passed);
  const spent = (Date.now() - Date.parse(started)) / 1000;
  return spent >= 0 ? stopwatch(spent) : '';
}

customElements.define('progressd-job', ProgressdJob);
