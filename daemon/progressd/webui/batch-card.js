/** The card of a batch: one bar for all its jobs, and on request the cards of the jobs. */

import { aboutOf, accountOf, endOf, titleOf } from './batches.js';
import { setText } from './dom.js';
import { t } from './text.js';

/** The number of jobs shown at first. */
const FEW = 4;

const template = document.createElement('template');
template.innerHTML = `<li class="job batch" tabindex="-1">
<header class="job-head">
<h3 class="job-name"><span data-part="name"></span> <span class="job-kind" data-part="kind"></span></h3>
<p class="job-figure" data-part="figure" aria-hidden="true"></p>
</header>
<div class="job-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" data-part="bar"><div class="job-fill"
data-part="fill"></div></div>
<div class="job-foot">
<p class="job-account"><span class="job-step" data-part="step"></span></p>
<div class="job-actions">
<button type="button" data-action="toggle" data-part="toggle" aria-expanded="false"></button>
<button type="button" data-action="cancelAll" data-part="cancel"
data-question="${t('Really cancel all?')}">${t('Cancel all')}</button>
</div>
</div>
<p class="job-note" data-part="note" role="alert" hidden></p>
<ol class="jobs batch-jobs" data-part="jobs" hidden></ol>
</li>`;

/** @typedef {import('./batches.js').Batch} Batch */

export class BatchCard {
  #entry = null;
  #parts = {};
  #list;
  #open = false;
  #chosen = null; // whether the user has opened it

  /** @param {(root: HTMLElement) => import('./job-list.js').JobList} newList creates the list of its jobs */
  constructor(newList) {
    this.element = template.content.firstElementChild.cloneNode(true);
    for (const part of this.element.querySelectorAll('[data-part]')) this.#parts[part.dataset.part] = part;
    this.#list = newList(this.#parts.jobs);
    this.#parts.toggle.addEventListener('click', () => this.#toggle((this.#chosen = !this.#open)));
  }

  /** @returns {Batch} */
  get entry() {
    return this.#entry;
  }

  /** @param {Batch} entry */
  show(entry) {
    if (entry.status !== this.#entry?.status) this.note('');
    this.#entry = entry;
    const { id, status, counts, percent, jobs } = entry;
    const name = titleOf(entry);
    const verdict = endOf(entry) ?? t('{percent}%', { percent });
    const account = accountOf(entry);
    const { bar, fill, cancel } = this.#parts;
    this.element.dataset.batchId = id;
    this.element.dataset.status = status;
    setText(this.#parts.name, name);
    setText(this.#parts.kind, aboutOf(entry));
    setText(this.#parts.figure, verdict);
    setText(this.#parts.step, account);
    bar.setAttribute('aria-label', t('Progress of {name}', { name: nameOf(entry) }));
    bar.setAttribute('aria-valuenow', percent);
    bar.setAttribute('aria-valuetext', [verdict, account].join(', '));
    fill.style.transform = `scaleX(${percent / 100})`;
    cancel.hidden = !counts.pending && !counts.processing;
    cancel.setAttribute('aria-label', t('Cancel all jobs of {name}', { name: nameOf(entry) }));
    this.#toggle(this.#chosen ?? counts.total <= FEW);
    this.#list.show(jobs);
  }

  /** Updates the times on the cards of its jobs. */
  tick() {
    if (this.#open) this.#list.tick();
  }

  /** @param {string} sentence why the last action failed; empty to clear it */
  note(sentence) {
    setText(this.#parts.note, sentence);
    this.#parts.note.hidden = !sentence;
  }

  /** Clears the notes about failed actions on this card and on the cards of its jobs. */
  clearNotes() {
    this.note('');
    this.#list.clearNotes();
  }

  /** Shows on the card of one of its jobs why an action failed. */
  complain(id, sentence) {
    this.#list.complain(id, sentence);
  }

  #toggle(open) {
    this.#open = open;
    const { toggle, jobs } = this.#parts;
    jobs.hidden = !open;
    toggle.ariaExpanded = String(open);
    const name = nameOf(this.#entry);
    setText(toggle, open ? t('Hide files') : t('Show files'));
    toggle.setAttribute('aria-label', open ? t('Hide files of {name}', { name }) : t('Show files of {name}', { name }));
  }
}

/** The name by which a screen reader distinguishes the batch. */
const nameOf = ({ counts, first }) => t('batch of {n} file, {first} | batch of {n} files, {first}', { n: counts.total, first });
