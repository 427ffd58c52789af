/** The list of the page: rows, or cards while there are few jobs. It shows the view in the form that the user prefers. */

import { setting } from './settings.js';
import { t } from './text.js';

/** More entries than the first number become rows, and fewer than the second become cards again. */
const [MANY, FEW] = [10, 8];

/** The time until rows or cards that could not be loaded are requested again. */
const RETRY_MS = 5000;

/** A batch before its module is here. */
const unknownBatch = (id) =>
  ({ id, batch: true, status: 'processing', name: '…', about: '', account: '', state: '', percent: 0, isRunning: false });

/** Cards take long to build. The rest is shown as rows only. */
const MAX_CARDS = 100;

export class List {
  #jobs;
  #uploads;
  #view;
  /** @type {?import('./batches.js').Batches} */
  #batches = null;
  #extras;
  #roots;
  #rows = null;
  #cards = null;
  #loading = new Set();
  #mode = null;
  #missing = 0;

  /**
   * @param {{rows: HTMLElement, cards: HTMLElement, rest: HTMLElement}} roots
   * @param {object} source `jobs`, `uploads` and `view`
   * @param {object} extras
   * @param {(name: string, entry: object, button?: HTMLElement) => void} extras.act
   * @param {(id: string | null, how: 'toggle'|'range'|'anchor'|'all') => void} extras.select
   * @param {(id: string) => object} extras.marksOf
   * @param {() => void} extras.onEnd
   * @param {(mode: 'rows' | 'cards') => void} extras.onMode
   * @param {(root: HTMLElement, source: object, actions: object) => Promise<import('./rows.js').Rows>} extras.newRows
   * @param {(root: HTMLElement) => Promise<import('./job-list.js').JobList>} extras.newCards
   * @param {() => Promise<import('./batches.js').Batches>} extras.newBatches
   * @param {() => void} extras.onChange
   * @param {(error: Error) => void} extras.onError
   */
  constructor(roots, { jobs, uploads, view }, extras) {
    this.#roots = roots;
    this.#jobs = jobs;
    this.#uploads = uploads;
    this.#view = view;
    this.#extras = extras;
    if (setting('view')) this.#load(setting('view'));
  }

  /** Moves the focus to the first entry, or to the row that had it. */
  focus() {
    (this.#mode === 'cards' ? this.#cards : this.#rows)?.focus();
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
    else if (isNew || changed || missing !== this.#missing) this.#rows?.show(this.#view.lines, missing);
    else this.#rows?.update();
    this.#missing = missing;
  }

  /** Updates the times. */
  tick() {
    if (this.#mode === 'cards') this.#cards?.tick();
    else this.#rows?.tick();
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
    this.#load(this.#mode);
  }

  /** Loads the module of rows or cards. */
  async #load(mode) {
    if ((mode === 'rows' ? this.#rows : this.#cards) || this.#loading.has(mode)) return;
    this.#loading.add(mode);
    try {
      if (mode === 'rows') this.#rows = await this.#newRows();
      else this.#cards = await this.#extras.newCards(this.#roots.cards);
      if (this.#mode !== mode) return;
      if (mode === 'rows') this.#rows.show(this.#view.lines, this.#missing);
      else this.#showCards();
    } catch (error) {
      this.#extras.onError(error);
      setTimeout(() => this.#mode === mode && this.#load(mode), RETRY_MS);
    } finally {
      this.#loading.delete(mode);
    }
  }

  #newRows() {
    const { newRows, marksOf, onEnd, act, select, unfold } = this.#extras;
    const source = { entryOf: (line) => this.#entryOf(line), marksOf, onEnd };
    return newRows(this.#roots.rows, source, { act, select, unfold });
  }

  #showCards() {
    if (!this.#cards) return;
    const { lines } = this.#view;
    const shown = lines.filter(({ level }) => !level).slice(0, MAX_CARDS);
    this.#cards.show(shown.map((line) => this.#cardEntryOf(line)).filter(Boolean));
    const hidden = lines.length - shown.length;
    this.#roots.rest.hidden = hidden <= 0;
    this.#roots.rest.querySelector('span').textContent = t('{n} more job | {n} more jobs', { n: hidden });
    if (lines.length <= MAX_CARDS) this.#extras.onEnd();
  }

  #cardEntryOf({ id, members }) {
    if (!members) return this.#jobs.get(id) ?? this.#uploads.newestFirst().find((upload) => upload.id === id);
    const jobs = members.map((member) => this.#jobs.get(member)).filter(Boolean);
    if (!this.#batches) this.#loadBatches();
    return jobs.length && this.#batches ? this.#batches.of(id, jobs) : null;
  }

  /** Few pages show a batch. */
  async #loadBatches() {
    const loaded = await this.#extras.newBatches().catch(() => null); // the next change tries again
    if (!loaded) return;
    this.#batches ??= loaded;
    this.#extras.onChange();
  }

  #entryOf(line) {
    const entry = this.#cardEntryOf(line) ?? (line.members ? unknownBatch(line.id) : { id: line.id, status: 'cancelled' });
    return entry.counts ? this.#batches.constructor.rowOf(entry) : entry;
  }
}
