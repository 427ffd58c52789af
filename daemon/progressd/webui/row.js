/** One row of the list: a job, an upload, or a batch. It shows its entry and sends no requests. */

import { element, setText } from './dom.js';
import { number, rate } from './format.js';
import { icon } from './icons.js';
import { isFinished, isLate, isOpenEnded } from './jobs.js';
import { canRetry, forecast, nameOf, percentOf, resultOf, spentOn, stateOf, stepOf } from './job-text.js';
import { t } from './text.js';

const PARTS = ['pick', 'name', 'kind', 'state', 'bar', 'percent', 'step', 'rate', 'left', 'spent', 'host', 'actions'];

const template = document.createElement('template');
template.innerHTML = `<div class="row" role="row">
<span class="row-pick" role="gridcell"><input type="checkbox"></span>
<span class="row-name" role="gridcell"><button type="button" class="icon" data-action="toggle" hidden></button><a></a><span
class="row-kind"></span></span>
<span class="row-state" role="gridcell"></span>
<span class="row-bar" role="gridcell"><span class="track" role="progressbar" aria-valuemin="0" aria-valuemax="100"><span
class="fill"></span></span><span class="row-percent"></span></span>
<span class="row-step" role="gridcell"></span>
<span class="row-rate" role="gridcell"></span>
<span class="row-left" role="gridcell"></span>
<span class="row-spent" role="gridcell"></span>
<span class="row-host" role="gridcell"></span>
<span class="row-actions" role="gridcell"></span></div>`;

export class Row {
  #parts = {};
  #entry = null;
  #line = null;
  #marks = '';
  #index = -1;
  #height = 0;
  #buttons = '';
  #isTabbable = false;
  #pending = false;

  constructor() {
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.tabIndex = -1;
    for (const part of PARTS) this.#parts[part] = this.element.querySelector(`.row-${part}`);
    const { name, bar, pick } = this.#parts;
    Object.assign(this.#parts, { box: pick.firstChild, link: name.querySelector('a'), track: bar.firstChild });
    Object.assign(this.#parts, { fill: this.#parts.track.firstChild, toggle: name.firstChild });
    this.#parts.toggle.append(icon('toggle'));
  }

  /** The address before the links to jobs; empty on the page of the daemon. */
  base = '';

  /** @returns {number} of its line */
  get index() {
    return this.#index;
  }

  /** Makes this the row of another line. */
  become({ id, members }) {
    this.id = id;
    this.element.dataset.id = id;
    this.#parts.toggle.hidden = !members;
    this.#entry = null;
  }

  /** @param {number} index of the line @param {number} height of a row, px */
  place(index, height) {
    if (index === this.#index && height === this.#height) return;
    this.#index = index;
    this.#height = height;
    this.element.style.transform = `translateY(${index * height}px)`;
    this.element.setAttribute('aria-rowindex', index + 2);
  }

  /** @param {boolean} isTabbable whether Tab enters this row */
  set tabbable(isTabbable) {
    if (isTabbable === this.#isTabbable) return;
    this.#isTabbable = isTabbable;
    this.#setTabIndex();
  }

  #setTabIndex() {
    this.element.tabIndex = this.#isTabbable ? 0 : -1;
    for (const inner of this.element.querySelectorAll('a, button, input')) inner.tabIndex = this.#isTabbable ? 0 : -1;
  }

  /**
   * @param {object} entry a job, an upload, or a batch
   * @param {import('./view.js').Line} line
   * @param {{selected?: boolean, pending?: boolean, starred?: boolean}} marks
   */
  show(entry, line, marks) {
    const text = JSON.stringify(marks);
    if (entry === this.#entry && line === this.#line && text === this.#marks) return;
    this.element.toggleAttribute('data-new', !this.#entry); // its bar does not move there, but starts there
    const isSame = this.#entry && entry.status === this.#entry.status && text === this.#marks && line === this.#line;
    this.#entry = entry;
    this.#line = line;
    this.#marks = text;
    this.#identify(marks);
    this.#showProgress(marks);
    if (!isSame) this.#showActions(marks);
    this.tick();
  }

  #identify({ selected, pending }) {
    const { upload, batch, id, status, kind, labels, error } = this.#entry;
    const { element } = this;
    const { box, link, toggle } = this.#parts;
    const name = batch ? this.#entry.name : nameOf(this.#entry);
    element.dataset.status = status;
    if (upload || batch) delete element.dataset.jobId;
    else element.dataset.jobId = id;
    element.toggleAttribute('data-late', isLate(this.#entry));
    element.toggleAttribute('data-pending', Boolean(pending));
    element.toggleAttribute('data-selected', Boolean(selected));
    element.setAttribute('aria-selected', Boolean(selected));
    element.setAttribute('aria-level', this.#line.level ?? 1);
    if (batch) element.setAttribute('aria-expanded', Boolean(this.#line.open));
    else element.removeAttribute('aria-expanded');
    setText(link, name);
    link.title = name;
    if (upload) link.removeAttribute('href');
    else link.setAttribute('href', `${this.base}${batch ? 'batches' : 'jobs'}/${id}`);
    setText(this.#parts.kind, batch ? this.#entry.about : kind && kind !== name ? kind : '');
    setText(this.#parts.host, labels?.host ?? '');
    this.#parts.host.title = labels?.host ?? '';
    box.checked = Boolean(selected);
    box.disabled = Boolean(upload);
    box.setAttribute('aria-label', t('Select {name}', { name }));
    if (batch) toggle.setAttribute('aria-label', this.#line.open ? t('Hide the jobs of {name}', { name }) : t('Show the jobs of {name}', { name }));
    const step = batch ? this.#entry.account : stepOf(this.#entry);
    setText(this.#parts.step, step);
    this.#parts.step.title = step;
    this.#parts.step.toggleAttribute('data-error', Boolean(status === 'failed' && error));
  }

  #showProgress({ pending }) {
    const { batch, upload, status, progress } = this.#entry;
    const { track, fill } = this.#parts;
    const openEnded = !batch && isOpenEnded(this.#entry);
    const percent = batch ? this.#entry.percent : percentOf(this.#entry);
    const shown = openEnded || status === 'queued' || (upload && status === 'failed') ? '' : t('{percent}%', { percent: number(percent) });
    setText(this.#parts.percent, shown);
    track.setAttribute('aria-label', t('Progress of {name}', { name: this.#parts.link.textContent }));
    if (openEnded) track.removeAttribute('aria-valuenow');
    else track.setAttribute('aria-valuenow', percent);
    track.toggleAttribute('data-open-ended', openEnded);
    fill.style.transform = openEnded ? '' : `scaleX(${percent / 100})`;
    setText(this.#parts.rate, status === 'processing' ? rate(progress?.rate, progress?.unit) : '');
    this.#pending = pending;
  }

  /** Updates the elapsed and the remaining time, and how long a job has been silent. */
  tick() {
    const entry = this.#entry;
    const { batch, upload, detail } = entry;
    setText(this.#parts.state, this.#pending ? t('Cancelling…') : batch ? entry.state : stateOf(entry));
    const hasForecast = !batch && !isFinished(entry) && entry.status !== 'queued';
    const left = !hasForecast ? '' : upload ? detail : forecast(entry);
    setText(this.#parts.left, left);
    this.element.toggleAttribute('data-endless', !left);
    setText(this.#parts.spent, batch || upload || entry.status === 'queued' ? '' : spentOn(entry));
  }

  #showActions({ starred, pending }) {
    const { upload, batch } = this.#entry;
    const over = isFinished(this.#entry);
    const result = upload || batch ? null : resultOf(this.#entry);
    const actions = {
      download: result && (result.elsewhere ? t('Open result') : t('Download')),
      retry: canRetry(this.#entry) && t('Retry'),
      dismiss: upload && over && t('Remove'),
      delete: !upload && !batch && over && t('Delete'),
      cancel: !pending && (batch ? this.#entry.isRunning : !over) && t('Cancel'),
      star: !upload && !batch && (starred ? t('Unstar') : t('Star')),
    };
    const name = this.#parts.link.textContent;
    const key = [...Object.values(actions), result?.href].join('|');
    if (key !== this.#buttons) {
      this.#buttons = key;
      const focused = this.#parts.actions.contains(document.activeElement);
      const shown = Object.entries(actions).filter(([, title]) => title);
      this.#parts.actions.replaceChildren(...shown.map(([action, title]) => newButton(action, title, result)));
      this.#setTabIndex();
      if (focused) this.element.focus({ preventScroll: true });
    }
    for (const button of this.#parts.actions.children) {
      button.setAttribute('aria-label', t('{action}: {name}', { action: button.title, name }));
      if (button.dataset.action === 'star') button.setAttribute('aria-pressed', Boolean(starred));
    }
  }
}

function newButton(action, title, result) {
  const picture = icon(action === 'dismiss' ? 'delete' : action);
  const shared = { class: 'icon', 'data-action': action, title };
  if (action !== 'download') return element('button', { ...shared, type: 'button' }, picture);
  const link = element('a', { ...shared, href: result.href, rel: 'noopener noreferrer' }, picture);
  if (result.elsewhere) link.target = '_blank';
  else link.download = '';
  return link;
}
