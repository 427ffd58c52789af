/** Jobs that were handed in together, as the server counts them; asked for again when one of them has changed. */

import { getBatch } from './api.js';
import { nameOf } from './job-card.js';
import { isFinished } from './jobs.js';

/** So long after a question without an answer, it is asked again. */
const RETRY_S = 5;

/** The jobs of a batch were created in the same moment, so only their names give them an order that stays. */
const byName = new Intl.Collator('en', { numeric: true });

/**
 * A batch, in the shape a card shows.
 * @typedef {object} Batch
 * @property {true} batch
 * @property {string} id
 * @property {'queued'|'processing'|'completed'|'partially_completed'|'failed'|'cancelled'} status
 * @property {string} first the name of its first file, which tells it from other batches
 * @property {string} [priority]
 * @property {{completed: number, processing: number, pending: number, failed: number, cancelled: number,
 *   total: number}} counts
 * @property {number} percent
 * @property {import('./jobs.js').Job[]} jobs those that the page knows
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
   * Puts jobs of one batch together, where the first of them stands.
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

  /** What has changed meanwhile is asked for with the next look at it. */
  async #ask(id, known, seen) {
    known.asking = true;
    try {
      known.answer = await getBatch(id);
      known.seen = seen;
    } catch (error) {
      // There may be no next change, so an answer that is old by now would stay.
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
