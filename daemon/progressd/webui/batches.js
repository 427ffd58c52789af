/** Batches with the counts of the server. A batch is requested again when one of its jobs changes. */

import { getBatch } from './api.js';
import { nameOf } from './job-card.js';
import { isFinished } from './jobs.js';

/** Delay before a failed request is repeated. */
const RETRY_S = 5;

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

  /**
   * Groups the jobs of one batch at the position of the first one.
   * @param {import('./job-card.js').Entry[]} entries
   * @returns {(import('./job-card.js').Entry | Batch)[]}
   */
  group(entries) {
    const members = Map.groupBy(entries, (entry) => entry.batch_id ?? entry.id);
    for (const id of this.#batches.keys()) if (!members.has(id)) this.#batches.delete(id);
    return [...members].map(([id, jobs]) => (jobs[0].batch_id ? this.#batch(id, jobs) : jobs[0]));
  }

  #batch(id, members) {
    const jobs = [...members].sort((a, b) => byName.compare(nameOf(a), nameOf(b)));
    const seen = jobs.map((job) => `${job.id} ${job.status}`).join();
    const known = this.#batches.get(id) ?? { answer: null, seen: '', asking: false, first: nameOf(jobs[0]) };
    this.#batches.set(id, known);
    if (known.seen !== seen && !known.asking) this.#ask(id, known, seen);
    const counts = known.answer?.progress ?? counted(jobs);
    const status = known.answer?.status ?? (jobs.every(isFinished) ? 'completed' : 'processing');
    const { first, answer } = known;
    return { batch: true, id, status, first, priority: answer?.priority, counts, percent: percentOf(counts, jobs), jobs };
  }

  /** Requests the batch. Changes during the request lead to another one later. */
  async #ask(id, known, seen) {
    known.asking = true;
    try {
      known.answer = await getBatch(id);
      known.seen = seen;
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
