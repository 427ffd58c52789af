/** The order of the list: which jobs the query shows, in which order, and the numbers on the tabs. No DOM. */

import { isFinished, isLate } from './jobs.js';
import { nameOf } from './job-text.js';
import { IN_TAB, isFiltered, matcher, TABS } from './query.js';

/** The list of 10,000 jobs is sorted in a few ms. A new order takes at most this share of the time. */
const SHARE = 0.1;
const SOONEST_MS = 100;

/**
 * A line of the list.
 * @typedef {object} Line
 * @property {string} id of the job, upload or batch
 * @property {string[]} [members] of a batch: the ids of its jobs that the query shows
 * @property {boolean} [open] whether a batch is unfolded
 * @property {number} [level] 2 for the jobs of an unfolded batch
 */

const byName = new Intl.Collator('en', { numeric: true });
const descending = (key) => (a, b) => ((a[key] ?? '') < (b[key] ?? '') ? 1 : (a[key] ?? '') > (b[key] ?? '') ? -1 : 0);
const newestFirst = descending('created_at');
const named = (a, b) => byName.compare(nameOf(a), nameOf(b));
/** The order of jobs that were created together. A collator would take much longer. */
const byWord = (a, b) => (nameOf(a) < nameOf(b) ? -1 : nameOf(a) > nameOf(b) ? 1 : a.id < b.id ? -1 : 1);
const ORDERS = {
  '-created': newestFirst,
  created: (a, b) => newestFirst(b, a),
  '-updated': (a, b) => (b.changed ?? 0) - (a.changed ?? 0),
  '-finished': descending('completed_at'),
  name: named,
};

/** Late jobs come first, then running, waiting and finished ones. */
function rankOf(job) {
  if (isFinished(job)) return job.upload ? 0 : 3;
  if (job.status === 'queued' || job.waiting) return 2;
  return isLate(job) ? 0 : 1;
}

/** Finished jobs come last: the page has only some of them. */
const isOver = (job) => (isFinished(job) && !job.upload ? 1 : 0);

export class View {
  /** @type {Line[]} */
  lines = [];
  /** The jobs of the query that the page has, without uploads. */
  count = 0;
  /** Whether the numbers of the server are exact; otherwise there may be more jobs. */
  isExact = true;
  /** Whether a batch is one line even if the query shows only one of its jobs. */
  cards = false;
  #jobs;
  #uploads;
  #query;
  #matches;
  #counts = null;
  #open = new Set();
  #stale = true;
  #next = 0;

  /**
   * @param {import('./jobs.js').Jobs} jobs
   * @param {{newestFirst: () => import('./uploads.js').Upload[]}} uploads
   */
  constructor(jobs, uploads) {
    this.#jobs = jobs;
    this.#uploads = uploads;
  }

  /** @returns {Record<string, number> | null} the number of jobs and uploads in each tab */
  get counts() {
    if (!this.#counts) return null;
    const counts = { ...this.#counts };
    for (const upload of this.#uploads.newestFirst()) for (const tab of TABS) counts[tab] += this.#in(tab, upload);
    return counts;
  }

  /** @param {Record<string, number>} counts of the server, which from now on follow the messages */
  set counts(counts) {
    this.#counts = { ...counts };
  }

  /** Whether unfinished jobs that the page does not have yet belong into the list. */
  get misses() {
    return ['running', 'waiting', 'all'].includes(this.#query.tab) && !isFiltered(this.#query);
  }

  /** @param {import('./query.js').Query} query */
  show(query) {
    if (JSON.stringify({ ...query, tab: '', sort: '' }) !== JSON.stringify({ ...this.#query, tab: '', sort: '' })) {
      this.#counts = null;
    }
    this.#query = query;
    this.#matches = matcher(query);
    this.#stale = true;
    this.#next = 0;
  }

  /** @param {import('./jobs.js').Job} job */
  shows(job) {
    return IN_TAB[this.#query.tab](job) && this.#matches(job);
  }

  /** Follows a change of the jobs, as `Jobs` reports it. */
  changed(before, after, told) {
    if (before && after && isSame(before, after)) return;
    this.#stale = true;
    if (told && this.#counts) {
      for (const tab of TABS) this.#counts[tab] += this.#in(tab, after) - this.#in(tab, before);
    }
  }

  #in(tab, job) {
    return job && IN_TAB[tab](job) && this.#matches(job) ? 1 : 0;
  }

  /** Follows a job that the page does not have. */
  changedElsewhere({ old_status: before, new_status: after }) {
    if (!this.#counts || isFiltered(this.#query)) return;
    for (const tab of TABS) {
      this.#counts[tab] += Number(IN_TAB[tab]({ status: after })) - Number(IN_TAB[tab]({ status: before }));
    }
  }

  /** The uploads have changed, or a batch was folded. */
  invalidate() {
    this.#stale = true;
    this.#next = 0;
  }

  /** @param {string} id of a batch @param {boolean} open */
  unfold(id, open) {
    if (open) this.#open.add(id);
    else this.#open.delete(id);
    this.invalidate();
  }

  /** @returns {number} the delay in ms until `refresh` has something to do; Infinity without a change */
  get due() {
    return this.#stale ? Math.max(0, this.#next - performance.now()) : Infinity;
  }

  /** Updates the order, unless it was updated a moment ago. @returns {boolean} whether the lines are new */
  refresh() {
    if (this.due > 0) return false;
    const start = performance.now();
    this.#stale = false;
    this.lines = this.#folded(this.entries());
    const end = performance.now();
    this.#next = end + Math.max(SOONEST_MS, (end - start) / SHARE);
    return true;
  }

  /** @returns {import('./job-text.js').Entry[]} in order */
  entries() {
    const { sort } = this.#query;
    const order = ORDERS[sort];
    const group = sort === '-created' ? rankOf : isOver;
    const jobs = [];
    for (const job of this.#jobs.all()) if (this.shows(job)) jobs.push(job);
    this.count = jobs.length;
    jobs.sort((a, b) => group(a) - group(b) || order(a, b) || byWord(a, b));
    return [...this.#uploads.newestFirst().filter((upload) => this.shows(upload)), ...jobs];
  }

  /** Folds the jobs of a batch into one line, at the place of the first. */
  #folded(entries) {
    const members = new Map();
    for (const { batch_id: batch, id } of entries) {
      if (!batch) continue;
      if (members.has(batch)) members.get(batch).push(id);
      else members.set(batch, [id]);
    }
    const lines = [];
    for (const { batch_id: batch, id } of entries) {
      const ids = batch && members.get(batch);
      if (!ids || (ids.length === 1 && !this.cards && !this.#open.has(batch))) lines.push({ id });
      else if (ids[0] === id) this.#putBatch(lines, batch, ids);
    }
    return lines;
  }

  #putBatch(lines, id, members) {
    const open = this.#open.has(id);
    lines.push({ id, members, open });
    if (!open) return;
    const jobs = members.map((member) => this.#jobs.get(member)).sort(named);
    for (const job of jobs) lines.push({ id: job.id, level: 2 });
  }
}

/** Whether a change leaves the job in its place. */
function isSame(before, after) {
  return before.status === after.status && before.created_at === after.created_at && isLate(before) === isLate(after)
    && before.changed === after.changed && before.name === after.name && before.completed_at === after.completed_at
    && before.error === after.error && before.batch_id === after.batch_id;
}
