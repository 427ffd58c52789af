/** The card of one job or upload. It shows its entry and sends no requests. */

import { rate, steps } from './format.js';
import { isFinished, isLate, isOpenEnded } from './jobs.js';
import { canRetry, figureOf, nameOf, percentOf, resultOf, stepOf, timeOf, verdictOf } from './job-text.js';
import { PreviewStrip } from './previews.js';
import { t } from './text.js';

const MAX_TASKS_SHOWN = 8;

const template = document.getElementById('job-card');

/** @typedef {import('./job-text.js').Entry} Entry */

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
    this.element.toggleAttribute('data-late', isLate(this.#entry));
    const name = nameOf(this.#entry);
    setText(this.#parts.name, name);
    this.#parts.name.title = name;
    if (upload) this.#parts.name.removeAttribute('href');
    else this.#parts.name.href = `jobs/${id}`;
    setText(this.#parts.kind, kind && kind !== name && kind !== 'pdf' ? kind : '');
  }

  #showProgress() {
    const { status } = this.#entry;
    const percent = percentOf(this.#entry);
    const openEnded = isOpenEnded(this.#entry);
    const verdict = figureOf(this.#entry);
    const step = stepOf(this.#entry);
    setText(this.#parts.figure, verdict);
    setText(this.#parts.step, step);
    const { rate: speed, unit, tasks = [] } = status === 'processing' ? this.#entry.progress ?? {} : {};
    setText(this.#parts.rate, rate(speed, unit));
    this.#showTasks(tasks);
    const { bar } = this.#parts;
    bar.setAttribute('aria-label', t('Progress of {name}', { name: nameOf(this.#entry) }));
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
      more.textContent = t('and {n} more', { n: tasks.length - shown.length });
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
    const link = upload ? null : resultOf(this.#entry);
    download.hidden = !link;
    dismiss.hidden = !upload || status !== 'failed';
    deletion.hidden = upload || !isFinished(this.#entry);
    if (link) {
      download.href = link.href;
      setText(download, link.elsewhere ? t('Open result') : t('Download'));
      download.toggleAttribute('download', !link.elsewhere);
      download.target = link.elsewhere ? '_blank' : '';
    }
    for (const action of [cancel, retry, download, dismiss, deletion]) {
      if (action.hasAttribute('data-asking')) continue;
      action.setAttribute('aria-label', t('{action} {name}', { action: action.textContent.trim(), name: nameOf(this.#entry) }));
    }
    if (focused?.hidden) ([retry, download, dismiss].find((action) => !action.hidden) ?? this.element).focus();
  }
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
  setText(detail, verdictOf(state) ?? steps(current, total, unit));
  return line;
}

/** Sets the text only if it changes, for the sake of selections and screen readers. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
