/** The card of one job or upload. It shows its entry and sends no requests. */

import { downloadUrl } from './api.js';
import { now } from './clock.js';
import { count, duration, moment, rate, remaining, steps, stopwatch } from './format.js';
import { isFinished, isOpenEnded } from './jobs.js';
import { PreviewStrip } from './previews.js';

const MAX_TASKS_SHOWN = 8;
const VERDICTS = { queued: 'Queued', completed: 'Done', failed: 'Failed', cancelled: 'Cancelled' };

const template = document.getElementById('job-card');

/** @typedef {import('./jobs.js').Job | import('./uploads.js').Upload} Entry */

/** @param {Entry} entry */
export const nameOf = (entry) => entry.name || entry.input_filename || entry.kind || 'Untitled job';

export class JobCard {
  #entry = null;
  #parts = {};
  #previews;

  constructor() {
    this.element = template.content.firstElementChild.cloneNode(true);
    for (const part of this.element.querySelectorAll('[data-part]')) this.#parts[part.dataset.part] = part;
    this.#previews = new PreviewStrip(this.#parts.previews);
  }

  /** @returns {Entry} */
  get entry() {
    return this.#entry;
  }

  /** @param {Entry} entry */
  show(entry) {
    if (entry === this.#entry) return;
    if (entry.status !== this.#entry?.status) this.note('');
    this.#entry = entry;
    this.#identify();
    this.#showProgress();
    this.#showActions();
    this.#previews.show(entry.previews, nameOf(entry));
    this.tick();
  }

  /** Updates the elapsed and the remaining time. */
  tick() {
    const time = this.#entry.upload ? this.#entry.detail : timeOf(this.#entry);
    setText(this.#parts.time, time);
  }

  /** @param {string} sentence why the last action failed; empty to clear it */
  note(sentence) {
    setText(this.#parts.note, sentence);
    this.#parts.note.hidden = !sentence;
  }

  clearNotes() {
    this.note('');
  }

  #identify() {
    const { upload, id, status, kind } = this.#entry;
    const { dataset } = this.element;
    dataset[upload ? 'uploadId' : 'jobId'] = id;
    dataset.status = status;
    const name = nameOf(this.#entry);
    setText(this.#parts.name, name);
    this.#parts.name.title = name;
    setText(this.#parts.kind, kind && kind !== name && kind !== 'pdf' ? kind : '');
  }

  #showProgress() {
    const { status } = this.#entry;
    const percent = status === 'completed' ? 100 : this.#entry.progress?.percent ?? 0;
    const openEnded = isOpenEnded(this.#entry);
    const verdict = VERDICTS[status] ?? (openEnded ? '' : `${percent}%`);
    const step = stepOf(this.#entry);
    setText(this.#parts.figure, verdict);
    setText(this.#parts.step, step);
    const { rate: speed, unit, tasks = [] } = status === 'processing' ? this.#entry.progress ?? {} : {};
    setText(this.#parts.rate, rate(speed, unit));
    this.#showTasks(tasks);
    const { bar } = this.#parts;
    bar.setAttribute('aria-label', `Progress of ${nameOf(this.#entry)}`);
    bar.toggleAttribute('data-open-ended', openEnded);
    if (openEnded) bar.removeAttribute('aria-valuenow');
    else bar.setAttribute('aria-valuenow', percent);
    bar.setAttribute('aria-valuetext', [verdict, step].filter(Boolean).join(', '));
    this.#parts.fill.style.transform = openEnded ? '' : `scaleX(${percent / 100})`;
  }

  /** Shows the unfinished tasks first. Each line stays the same element, so that its bar moves. */
  #showTasks(tasks) {
    const list = this.#parts.tasks;
    const shown = [...tasks].sort((a, b) => isFinished(a) - isFinished(b)).slice(0, MAX_TASKS_SHOWN);
    const lines = new Map([...list.children].map((line) => [line.dataset.taskId, line]));
    list.replaceChildren(...shown.map((task) => showTask(lines.get(task.id) ?? newTaskLine(task.id), task)));
    if (tasks.length > shown.length) {
      const more = document.createElement('li');
      more.className = 'task-more';
      more.textContent = `and ${tasks.length - shown.length} more`;
      list.append(more);
    }
    list.hidden = !tasks.length;
  }

  #showActions() {
    const { upload, status } = this.#entry;
    const { cancel, retry, download, dismiss, delete: deletion } = this.#parts;
    const focused = this.element.contains(document.activeElement) ? document.activeElement : null;
    cancel.hidden = isFinished(this.#entry);
    retry.hidden = !canRetry(this.#entry);
    const link = status === 'completed' ? linkTo(this.#entry) : null;
    download.hidden = !link;
    dismiss.hidden = !upload || status !== 'failed';
    deletion.hidden = upload || !isFinished(this.#entry);
    if (link) {
      download.href = link.href;
      setText(download, link.elsewhere ? 'Open result' : 'Download');
      download.toggleAttribute('download', !link.elsewhere);
      download.target = link.elsewhere ? '_blank' : '';
    }
    for (const action of [cancel, retry, download, dismiss, deletion]) {
      if (action.hasAttribute('data-asking')) continue;
      action.setAttribute('aria-label', `${action.textContent.trim()} ${nameOf(this.#entry)}`);
    }
    if (focused?.hidden) ([retry, download, dismiss].find((action) => !action.hidden) ?? this.element).focus();
  }
}

/**
 * @param {import('./jobs.js').Job} job
 * @returns {{href: string, elsewhere: boolean} | null} null for a job without a result, or with an unsafe URL
 */
function linkTo({ id, output_path: output }) {
  if (!output) return null;
  if (output.startsWith('/')) return { href: downloadUrl(id), elsewhere: false };
  return /^https?:\/\//i.test(output) ? { href: output, elsewhere: true } : null;
}

/** The server can retry its own jobs, and the page its uploads. Some files are rejected every time. */
function canRetry({ upload, status, refused, pipeline }) {
  if (status !== 'failed' && status !== 'cancelled') return false;
  return upload ? !refused : Boolean(pipeline);
}

/** @param {Entry} entry */
function stepOf({ status, pipeline, progress = {}, page_count: pages, error }) {
  if (status === 'queued') return pipeline ? 'Waiting for its turn' : 'Not started yet';
  if (status === 'completed') return pages ? count(pages, 'page') : '';
  const { step_name: name, current_step: step, total_steps: total, unit, phase } = progress;
  if (status === 'failed' && error) return error;
  if (isFinished({ status })) return name ? `Stopped at ${name}` : '';
  const part = phase && !name.startsWith(phase) ? phase : '';
  return [part, name, steps(step, total, unit)].filter(Boolean).join(' · ') || 'Starting';
}

function newTaskLine(id) {
  const line = document.createElement('li');
  line.dataset.taskId = id;
  for (const part of ['name', 'bar', 'detail']) {
    const span = document.createElement('span');
    span.className = `task-${part}`;
    line.append(span);
  }
  return line;
}

/** @param {import('./jobs.js').Task} task */
function showTask(line, { name, current, total, unit, state }) {
  const [title, bar, detail] = line.children;
  const share = state === 'completed' ? 1 : total ? Math.min(1, current / total) : 0;
  line.dataset.state = state;
  setText(title, name);
  title.title = name;
  bar.style.setProperty('--share', share);
  setText(detail, VERDICTS[state] ?? steps(current, total, unit));
  return line;
}

/** @param {import('./jobs.js').Job} job */
function timeOf(job) {
  if (job.status === 'queued') return job.created_at ? `since ${moment(job.created_at)}` : '';
  const spent = spentOn(job);
  if (!isFinished(job)) {
    const left = job.progress?.stalled ? 'no sign of life' : forecast(job);
    return [spent, left].filter(Boolean).join(' · ');
  }
  const preposition = job.status === 'completed' ? 'in' : 'after';
  const end = job.completed_at ? moment(job.completed_at) : '';
  return [spent && `${preposition} ${spent}`, end].filter(Boolean).join(' · ');
}

/** The remaining time; empty once a step takes longer than the previous steps predict. */
function forecast({ ends_at: end, ends_within: within, progress }) {
  if (end === undefined) return '';
  const left = (time) => Math.max(0, time - now()) / 1000;
  const seconds = left(end);
  if (seconds < 3 && progress?.percent < 75) return '';
  return within ? remaining(seconds, left(within.earliest), left(within.latest)) : remaining(seconds);
}

/** @param {import('./jobs.js').Job} job a job that has started, and maybe finished */
function spentOn(job) {
  if (isFinished(job) && job.elapsed_seconds !== undefined) return duration(job.elapsed_seconds);
  const end = isFinished(job) ? Date.parse(job.completed_at) : now();
  const seconds = (end - Date.parse(job.started_at)) / 1000;
  if (Number.isNaN(seconds)) return '';
  return isFinished(job) ? duration(seconds) : stopwatch(seconds);
}

/** Sets the text only if it changes, for the sake of selections and screen readers. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
