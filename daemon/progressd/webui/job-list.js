/** The list of cards, kept in the order of the entries it is given; moves only the cards that have to move. */

import { JobCard } from './job-card.js';
import { isFinished } from './jobs.js';

/** @typedef {import('./job-card.js').Entry} Entry */

export class JobList {
  #root;
  /** @type {Map<string, JobCard>} */
  #cards = new Map();

  /**
   * @param {HTMLElement} root
   * @param {Record<string, (entry: Entry) => Promise<void> | void>} actions by their buttons' `data-action`
   */
  constructor(root, actions) {
    this.#root = root;
    root.addEventListener('click', ({ target }) => {
      const button = target.closest('button[data-action]');
      if (button) this.#act(button, actions[button.dataset.action]);
    });
  }

  /** @param {Entry[]} entries */
  show(entries) {
    const stay = new Set(entries.map((entry) => entry.id));
    for (const [id, card] of this.#cards) if (!stay.has(id)) this.#drop(id, card);
    let place = this.#root.firstElementChild;
    for (const entry of entries) {
      const card = this.#cardOf(entry.id);
      if (card.element === place) place = place.nextElementSibling;
      else this.#root.insertBefore(card.element, place);
      card.show(entry); // in its place, because a strip of previews has no width to scroll before
    }
  }

  /** Brings the times on the cards up to date. */
  tick() {
    for (const card of this.#cards.values()) if (!isFinished(card.entry)) card.tick();
  }

  #cardOf(id) {
    if (!this.#cards.has(id)) this.#cards.set(id, new JobCard());
    return this.#cards.get(id);
  }

  #drop(id, card) {
    card.element.remove();
    this.#cards.delete(id);
  }

  async #act(button, action) {
    if (button.ariaBusy === 'true') return;
    const { dataset } = button.closest('.job');
    const card = this.#cards.get(dataset.jobId ?? dataset.uploadId);
    button.ariaBusy = 'true';
    card.note('');
    try {
      await action(card.entry);
    } catch (error) {
      card.note(error.message);
    } finally {
      button.ariaBusy = null;
    }
  }
}
