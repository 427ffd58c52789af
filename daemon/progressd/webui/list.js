/** The list of the page: rows, or cards while there are few jobs. It shows the view in the form that the user prefers. */

import { accountOf, aboutOf, endOf, titleOf } from './batches.js';
import { Rows } from './rows.js';
import { setting } from './settings.js';
import { t } from './text.js';

/** More entries than the first number become rows, and fewer than the second become cards again. */
const [MANY, FEW] = [10, 8];

/** The time until cards that could not be loaded are requested again. */
const RETRY_MS = 5000;

/** Cards take long to build. The rest is shown as rows only. */
const MAX_CARDS = 100;

export class List {
  #jobs;
  #uploads;
  #view;
  #batches;
  #extras;
  #roots;
  #rows = null;
  #cards = null;
  #isLoading = false;
  #mode = null;
  #missing = 0;

  /**
   * @param {{rows: HTMLElement, cards: HTMLElement, rest: HTMLElement}} roots
   * @param {object} source `jobs`, `uploads`, `view` and `batches`
   * @param {object} extras
   * @param {(name: string, entry: object, button?: HTMLElement) => void} extras.act
   * @param {(id: string | null, how: 'toggle'|'range'|'anchor'|'all') => void} extras.select
   * @param {(id: string) => object} extras.marksOf
   * @param {() => void} extras.onEnd
   * @param {(mode: 'rows' | 'cards') => void} extras.onMode
   * @param {(root: HTMLElement) => Promise<object>} extras.newCards
   * @param {(error: Error) => void} extras.onError
   */
  constructor(roots, { jobs, uploads, view, batches }, extras) {
    this.#roots = roots;
    this.#jobs = jobs;
    this.#uploads = uploads;
    this.#view = view;
    this.#batches = batches;
    this.#extras = extras;
  }

  /** The rows, if they are shown. */
  get rows() {
    return this.#mode === 'rows' ? this.#rows : null;
  }

  /**
   * Shows the current state.
   * @param {boolean} isNew whether the lines of the view are new
   * @param {number} missing the lines that are still being loaded
   * @param {boolean} isKnown whether the page knows about how many entries there are
   */
  show(isNew, missing, isKnown) {
    if (!isKnown && !this.#mode) return; // a list of many jobs must not begin as cards
    // A search that finds little does not turn rows into cards.
    const mode = this.#modeOf(Math.max(this.#view.lines.length + missing, this.#jobs.size));
    const changed = mode !== this.#mode;
    this.#mode = mode;
    this.#view.cards = mode === 'cards';
    if (changed) this.#start();
    this.#roots.rows.toggleAttribute('data-empty', !this.#view.lines.length && !missing);
    if (mode === 'cards') this.#showCards();
    else if (isNew || changed || missing !== this.#missing) this.#rows.show(this.#view.lines, missing);
    else this.#rows.update();
    this.#missing = missing;
  }

  /** Updates the times. */
  tick() {
    if (this.#mode === 'rows') this.#rows.tick();
    else this.#cards?.tick();
  }

  /** Clears the notes about failed actions. */
  clearNotes() {
    this.#cards?.clearNotes();
  }

  /** Shows on a job's card why an action failed. @returns {boolean} false if no card shows it */
  complain(id, sentence) {
    if (this.#mode !== 'cards') return false;
    this.#cards?.complain(id, sentence);
    return true;
  }

  #modeOf(length) {
    const chosen = setting('view');
    if (chosen) return chosen === 'rows' ? 'rows' : 'cards';
    return length > (this.#mode === 'rows' ? FEW - 1 : MANY) ? 'rows' : 'cards';
  }

  #start() {
    const { rows, cards, rest } = this.#roots;
    rows.hidden = this.#mode !== 'rows';
    cards.hidden = !rows.hidden;
    rest.hidden = true;
    this.#view.invalidate();
    this.#extras.onMode(this.#mode);
    if (this.#mode === 'rows') {
      this.#rows ??= new Rows(rows, {
        entryOf: (line) => this.#entryOf(line),
        marksOf: this.#extras.marksOf,
        onEnd: this.#extras.onEnd,
      }, {
        act: this.#extras.act,
        select: this.#extras.select,
        unfold: this.#extras.unfold,
      });
    } else {
      this.#loadCards();
    }
  }

  async #loadCards() {
    if (this.#cards || this.#isLoading) return;
    this.#isLoading = true;
    try {
      this.#cards = await this.#extras.newCards(this.#roots.cards);
      if (this.#mode === 'cards') this.#showCards();
    } catch (error) {
      this.#extras.onError(error);
      setTimeout(() => this.#mode === 'cards' && this.#loadCards(), RETRY_MS);
    } finally {
      this.#isLoading = false;
    }
  }

  #showCards() {
    if (!this.#cards) return;
    const { lines } = this.#view;
    const shown = lines.filter(({ level }) => !level).slice(0, MAX_CARDS);
    this.#cards.show(shown.map((line) => this.#cardEntryOf(line)).filter(Boolean));
    for (const card of this.#roots.cards.querySelectorAll('[data-job-id]')) {
      card.toggleAttribute('data-pending', Boolean(this.#extras.marksOf(card.dataset.jobId).pending));
    }
    const hidden = lines.length - shown.length;
    this.#roots.rest.hidden = hidden <= 0;
    this.#roots.rest.querySelector('span').textContent = t('{n} more job | {n} more jobs', { n: hidden });
    if (lines.length <= MAX_CARDS) this.#extras.onEnd();
  }

  #cardEntryOf({ id, members }) {
    if (!members) return this.#jobs.get(id) ?? this.#uploads.newestFirst().find((upload) => upload.id === id);
    const jobs = members.map((member) => this.#jobs.get(member)).filter(Boolean);
    return jobs.length ? this.#batches.of(id, jobs) : null;
  }

  #entryOf(line) {
    const entry = this.#cardEntryOf(line) ?? { id: line.id, status: 'cancelled' };
    if (!entry.batch) return entry;
    const { counts: { pending, processing } } = entry;
    const isRunning = pending + processing > 0;
    const state = endOf(entry) ?? t('Running');
    return { ...entry, name: titleOf(entry), about: aboutOf(entry), account: accountOf(entry), state, isRunning };
  }
}
