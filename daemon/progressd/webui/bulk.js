/** The selected jobs, and what is done with several jobs at once. */

import { number } from './format.js';
import { isConfirmed } from './confirm.js';
import { isFinished } from './jobs.js';
import { canRetry } from './job-text.js';
import { t } from './text.js';

/** Requests at the same time. */
const AT_A_TIME = 6;

export class Selection {
  /** @type {Set<string>} */
  #ids = new Set();
  #anchor = null;
  #bar;
  #source;

  /**
   * @param {HTMLElement} bar with the buttons for the selected jobs
   * @param {object} source
   * @param {() => import('./view.js').Line[]} source.lines
   * @param {import('./jobs.js').Jobs} source.jobs
   * @param {() => void} source.onChange
   * @param {Record<string, (jobs: import('./jobs.js').Job[]) => Promise<void>>} source.actions
   */
  constructor(bar, source) {
    this.#bar = bar;
    this.#source = source;
    bar.addEventListener('click', ({ target }) => this.#clicked(target.closest('button')));
  }

  get size() {
    return this.#ids.size;
  }

  has(id) {
    return this.#ids.has(id);
  }

  /**
   * @param {string | null} id of the line
   * @param {'toggle' | 'range' | 'anchor' | 'all'} how a range begins where the last selection was
   */
  select(id, how) {
    const lines = this.#source.lines();
    if (how === 'all') {
      for (const line of lines) this.#put(line, true);
    } else if (how === 'anchor') {
      if (!this.#ids.size) this.#anchor = id;
    } else {
      const [from, to] = [this.#anchor, id].map((one) => lines.findIndex((line) => line.id === one));
      if (how === 'range' && from >= 0) {
        for (const line of lines.slice(Math.min(from, to), Math.max(from, to) + 1)) this.#put(line, true);
      } else {
        this.#put(lines[to], !this.#isSelected(lines[to]));
        this.#anchor = id;
      }
    }
    this.#source.onChange();
  }

  clear() {
    this.#ids.clear();
    this.#source.onChange();
  }

  /** Drops jobs that the page no longer has, and shows how many are selected. */
  show() {
    const jobs = this.#jobs();
    this.#bar.hidden = !jobs.length;
    if (!jobs.length) return;
    const text = t('{count} job selected | {count} jobs selected', { n: jobs.length, count: number(jobs.length) });
    const label = this.#bar.querySelector('[data-part=count]');
    if (label.textContent !== text) label.textContent = text;
    for (const button of this.#bar.querySelectorAll('[data-bulk]')) {
      button.disabled = !jobs.some(CAN[button.dataset.bulk]);
    }
  }

  /** @param {import('./view.js').Line} line */
  #isSelected({ id, members }) {
    return members ? members.every((member) => this.#ids.has(member)) : this.#ids.has(id);
  }

  #put({ id, members }, isSelected) {
    for (const one of members ?? [id]) {
      if (!isSelected) this.#ids.delete(one);
      else if (this.#source.jobs.get(one)) this.#ids.add(one);
    }
  }

  #jobs() {
    const jobs = [];
    for (const id of this.#ids) {
      const job = this.#source.jobs.get(id);
      if (job) jobs.push(job);
      else this.#ids.delete(id);
    }
    return jobs;
  }

  async #clicked(button) {
    if (!button) return;
    const { bulk, question } = button.dataset;
    if (!bulk) {
      this.clear();
      return;
    }
    if (question && !isConfirmed(button, question)) return;
    const jobs = this.#jobs().filter(CAN[bulk]);
    this.clear();
    if (!jobs.length) return; // they have ended since
    await this.#source.actions[bulk](jobs);
  }
}

const CAN = { cancel: (job) => !isFinished(job), retry: canRetry, delete: isFinished };

/**
 * Does something with several jobs.
 * @param {object[]} jobs
 * @param {(job: object) => Promise<void>} action
 * @returns {Promise<Error[]>} the errors
 */
export async function withAll(jobs, action) {
  const errors = [];
  const rest = [...jobs];
  const work = async () => {
    for (let job = rest.shift(); job; job = rest.shift()) await action(job).catch((error) => errors.push(error));
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
  return errors;
}
