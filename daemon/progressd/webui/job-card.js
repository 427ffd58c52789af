/** The card of one job or upload. It shows its entry and sends no requests. */

import { element, setText } from './dom.js';
import { rate, steps } from './format.js';
import { icon } from './icons.js';
import { isFinished, isLate, isOpenEnded } from './jobs.js';
import { canRetry, figureOf, nameOf, percentOf, resultOf, stepOf, timeOf, verdictOf } from './job-text.js';
import { setting } from './settings.js';
import { t } from './text.js';

const MAX_TASKS_SHOWN = 8;

const template = document.createElement('template');
template.innerHTML = `<li class="job" tabindex="-1">
<header class="job-head">
<h3 class="job-name"><a data-part="name"></a> <span class="job-kind" data-part="kind"></span></h3>
<p class="job-figure" data-part="figure" aria-hidden="true"></p>
</header>
<div class="job-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" data-part="bar"><div class="job-fill"
data-part="fill"></div></div>
<div class="job-foot">
<p class="job-account"><span class="job-step" data-part="step"></span> <span class="job-rate" data-part="rate"></span>
<span class="job-time" data-part="time"></span></p>
<div class="job-actions">
<button type="button" class="icon" data-action="star" data-part="star"></button>
<button type="button" data-action="dismiss" data-part="dismiss">${t('Remove')}</button>
<button type="button" data-action="delete" data-part="delete" data-question="${t('Really delete?')}">${t('Delete')}</button>
<button type="button" data-action="cancel" data-part="cancel">${t('Cancel')}</button>
<button type="button" data-action="retry" data-part="retry">${t('Retry')}</button>
<a class="primary" data-action="download" data-part="download" rel="noopener noreferrer" download></a>
</div>
</div>
<ul class="job-tasks" data-part="tasks" aria-label="${t('Tasks')}" hidden></ul>
<p class="job-note" data-part="note" role="alert" hidden></p>
<ul class="job-previews" data-part="previews" hidden></ul>
</li>`;

/** @typedef {import('./job-text.js').Entry} Entry */

export class JobCard {
  #entry = null;
  #parts = {};
  #marksOf;
  #previews = null;

  /** @param {(id: string) => {pending?: boolean, starred?: boolean}} [marksOf] what the user has done with a job */
  constructor(marksOf = () => ({})) {
    this.#marksOf = marksOf;
    this.element = template.content.firstElementChild.cloneNode(true);
    for (const part of this.element.querySelectorAll('[data-part]')) this.#parts[part.dataset.part] = part;
    this.#parts.star.append(icon('star'));
  }

  /** @returns {Entry} */
  get entry() {
    return this.#entry;
  }

  /** @param {Entry} entry */
  show(entry) {
    this.#mark(this.#marksOf(entry.id));
    if (entry === this.#entry) return;
    if (entry.status !== this.#entry?.status) this.note('');
    this.#entry = entry;
    this.#identify();
    this.#showProgress();
    this.#showActions();
    if (entry.previews) this.#showPreviews();
    this.tick();
  }

  #mark({ pending = false, starred = false }) {
    const { star } = this.#parts;
    this.element.toggleAttribute('data-pending', pending);
    if (star.ariaPressed === String(starred)) return;
    star.ariaPressed = String(starred);
    star.title = starred ? t('Unstar') : t('Star');
  }

  async #showPreviews() {
    const { PreviewStrip } = await import('./previews.js').catch(() => ({})); // the next preview tries again
    if (!PreviewStrip) return;
    this.#previews ??= new PreviewStrip(this.#parts.previews);
    this.#previews.show(this.#entry.previews, nameOf(this.#entry));
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
      list.append(element('li', { class: 'task-more' }, t('and {n} more', { n: tasks.length - shown.length })));
    }
    list.hidden = !tasks.length;
  }

  #showActions() {
    const { upload, status } = this.#entry;
    const { star, cancel, retry, download, dismiss, delete: deletion } = this.#parts;
    const focused = this.element.contains(document.activeElement) ? document.activeElement : null;
    cancel.hidden = isFinished(this.#entry);
    if (!upload && setting('cancel') === 'ask') cancel.dataset.question = t('Really cancel?');
    else delete cancel.dataset.question;
    retry.hidden = !canRetry(this.#entry);
    const link = upload ? null : resultOf(this.#entry);
    download.hidden = !link;
    star.hidden = Boolean(upload);
    dismiss.hidden = !upload || status !== 'failed';
    deletion.hidden = upload || !isFinished(this.#entry);
    if (link) {
      download.href = link.href;
      setText(download, link.elsewhere ? t('Open result') : t('Download'));
      download.toggleAttribute('download', !link.elsewhere);
      download.target = link.elsewhere ? '_blank' : '';
    }
    star.setAttribute('aria-label', t('{action} {name}', { action: t('Star'), name: nameOf(this.#entry) }));
    for (const action of [cancel, retry, download, dismiss, deletion]) {
      if (action.hasAttribute('data-asking')) continue;
      action.setAttribute('aria-label', t('{action} {name}', { action: action.textContent.trim(), name: nameOf(this.#entry) }));
    }
    if (focused?.hidden) ([retry, download, dismiss].find((action) => !action.hidden) ?? this.element).focus();
  }
}

const newTaskLine = (id) =>
  element('li', { 'data-task-id': id }, ...['name', 'bar', 'detail'].map((part) => element('span', { class: `task-${part}` })));

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
