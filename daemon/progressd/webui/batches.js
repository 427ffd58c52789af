/** Batches with the counts of the server. A shown batch is requested again when one of its jobs changes. */

import { getBatch } from './api.js';
import { isFinished } from './jobs.js';
import { countsOf, nameOf, verdictOf } from './job-text.js';
import { t } from './text.js';

/** Delay before a failed request is repeated. */
const RETRY_S = 5;

/** The shortest time between two requests for a batch. */
const PAUSE_MS = 200;

/** The batches in memory. */
const MAX_KNOWN = 500;

/** The jobs of a batch were created at the same time, so only their names give a stable order. */
const byName = new Intl.Collator('en', { numeric: true });

/**
 * A batch, as a card shows it.
 * @typedef {object} Batch
 * @property {true} batch
 * @property {string} id
 * @property {'queued'|'processing'|'completed'|'partially_completed'|'failed'|'cancelled'} status
 * @property {string} first the name of its first file, which identifies it to the user
 * @property {string} [priority]
 * @property {{completed: number, processing: number, pending: number, failed: number, cancelled: number,
 *   total: number}} counts
 * @property {number} percent
 * @property {import('./jobs.js').Job[]} jobs known to the page
 */

export class Batches {
  /** @type {Map<string, {answer: ?object, seen: string, asking: boolean, first: string}>} */
  #batches = new Map();
  #onChange;

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  /** Returns a batch with the counts of its known jobs, without a request. */
  static counted(id, jobs) {
    const counts = counted(jobs);
    const status = jobs.every(isFinished) ? 'completed' : 'processing';
    return { batch: true, id, status, first: nameOf(jobs[0]), counts, percent: percentOf(counts, jobs), jobs };
  }

  /**
   * Returns a batch, and requests it if its jobs have changed.
   * @param {string} id
   * @param {import('./jobs.js').Job[]} members known to the page
   * @returns {Batch}
   */
  of(id, members) {
    const jobs = [...members].sort((a, b) => byName.compare(nameOf(a), nameOf(b)));
    const seen = jobs.map((job) => `${job.id} ${job.status}`).join();
    const known = this.#batches.get(id) ?? { answer: null, seen: '', asking: false, first: nameOf(jobs[0]) };
    this.#batches.delete(id); // so that the oldest is the first
    this.#batches.set(id, known);
    if (this.#batches.size > MAX_KNOWN) this.#batches.delete(this.#batches.keys().next().value);
    if (known.seen !== seen && !known.asking) this.#ask(id, known, seen);
    const counts = known.answer?.progress ?? counted(jobs);
    const status = known.answer?.status ?? (jobs.every(isFinished) ? 'completed' : 'processing');
    const { first, answer } = known;
    const percent = percentOf(counts, jobs);
    return { batch: true, id, status, first, priority: answer?.priority, counts, percent, jobs };
  }

  /** @param {Batch} batch @returns {object} what its row shows */
  static rowOf(batch) {
    const { pending, processing } = batch.counts;
    const texts = { name: titleOf(batch), about: aboutOf(batch), account: accountOf(batch), state: endOf(batch) ?? t('Running') };
    return { ...batch, ...texts, isRunning: pending + processing > 0 };
  }

  /** Requests the batch. Changes during the request lead to another one later. */
  async #ask(id, known, seen) {
    known.asking = true;
    try {
      known.answer = await getBatch(id);
      known.seen = seen;
      this.#onChange();
      await new Promise((resume) => setTimeout(resume, PAUSE_MS));
    } catch (error) {
      // Without a next change, an outdated answer would stay.
      await new Promise((resume) => setTimeout(resume, (error.retryAfter || RETRY_S) * 1000));
    }
    known.asking = false;
    this.#onChange();
  }
}

function counted(jobs) {
  const number = (wanted) => jobs.filter(({ status }) => status === wanted).length;
  return {
    completed: number('completed'),
    processing: number('processing'),
    pending: number('queued'),
    failed: number('failed'),
    cancelled: number('cancelled'),
    total: jobs.length,
  };
}

function percentOf({ pending, processing, total }, jobs) {
  const under = jobs.filter(({ status }) => status === 'processing').slice(0, processing);
  const parts = under.reduce((sum, { progress }) => sum + (progress?.percent ?? 0), 0);
  return total ? Math.floor((100 * (total - pending - processing) + parts) / total) : 0;
}

/** @param {Batch} batch */
export const titleOf = ({ counts }) => t('Batch of {n} file | Batch of {n} files', { n: counts.total });

/** @param {Batch} batch what identifies it to the user */
export function aboutOf({ counts, first, priority }) {
  const name = counts.total > 1 ? t('{name}, …', { name: first }) : first;
  if (priority === 'high') return [name, t('high priority')].join(' · ');
  return priority === 'low' ? [name, t('low priority')].join(' · ') : name;
}

/** @param {Batch} batch how many of its jobs are in which state */
export const accountOf = ({ counts }) => countsOf(counts);

/** @param {Batch} batch @returns {string | undefined} undefined while it runs */
export const endOf = ({ status }) => verdictOf(status);
