/** The card of a batch: one bar for all its jobs, and on request the cards of the jobs. */

import { count } from './format.js';

const VERDICTS = {
  queued: 'Queued',
  completed: 'Done',
  partially_completed: 'Partly done',
  failed: 'Failed',
  cancelled: 'Cancelled',
};

/** The number of jobs shown at first. */
const FEW = 4;

const template = document.getElementById('batch-card');

/** @typedef {import('./batches.js').Batch} Batch */

export class BatchCard {
  #entry = null;
  #parts = {};
  #list;
  #open = null;

  /** @param {(root: HTMLElement) => import('./job-list.js').JobList} newList creates the list of its jobs */
  constructor(newList) {
    this.element = template.content.firstElementChild.cloneNode(true);
    for (const part of this.element.querySelectorAll('[data-part]')) this.#parts[part.dataset.part] = part;
    this.#list = newList(this.#parts.jobs);
    this.#parts.toggle.addEventListener('click', () => this.#toggle(!this.#open));
  }

  /** @returns {Batch} */
  get entry() {
    return this.#entry;
  }

  /** @param {Batch} entry */
  show(entry) {
    if (entry.status !== this.#entry?.status) this.note('');
    this.#entry = entry;
    const { id, status, first, counts, percent, priority, jobs } = entry;
    const name = `Batch of ${count(counts.total, 'file')}`;
    const verdict = VERDICTS[status] ?? `${percent}%`;
    const account = accountOf(counts);
    const { bar, fill, cancel } = this.#parts;
    this.element.dataset.batchId = id;
    this.element.dataset.status = status;
    setText(this.#parts.name, name);
    const urgency = priority && priority !== 'normal' ? `${priority} priority` : '';
    setText(this.#parts.kind, [counts.total > 1 ? `${first}, …` : first, urgency].filter(Boolean).join(' · '));
    setText(this.#parts.figure, verdict);
    setText(this.#parts.step, account);
    bar.setAttribute('aria-label', `Progress of ${nameOf(entry)}`);
    bar.setAttribute('aria-valuenow', percent);
    bar.setAttribute('aria-valuetext', [verdict, account].join(', '));
    fill.style.transform = `scaleX(${percent / 100})`;
    cancel.hidden = !counts.pending && !counts.processing;
    cancel.setAttribute('aria-label', `Cancel all jobs of ${nameOf(entry)}`);
    this.#toggle(this.#open ?? counts.total <= FEW);
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
    setText(toggle, open ? 'Hide files' : 'Show files');
    toggle.setAttribute('aria-label', `${toggle.textContent} of ${nameOf(this.#entry)}`);
  }
}

/** The name by which a screen reader distinguishes the batch. */
const nameOf = ({ counts, first }) => `batch of ${count(counts.total, 'file')}, ${first}`;

function accountOf({ completed, processing, pending, failed, cancelled }) {
  const parts = { done: completed, running: processing, waiting: pending, failed, cancelled };
  return Object.entries(parts).filter(([, n]) => n).map(([what, n]) => `${n} ${what}`).join(', ');
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
