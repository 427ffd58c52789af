/** The list of cards: what runs, what waits, what is over; within these in the order of the entries it is given. */

import { JobCard } from './job-card.js';
import { isFinished } from './jobs.js';

/** @typedef {import('./job-card.js').Entry} Entry */

function groupOf(entry) {
  if (isFinished(entry)) return 2;
  return entry.status === 'queued' || entry.waiting ? 1 : 0;
}

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
    for (const entry of [...entries].sort((a, b) => groupOf(a) - groupOf(b))) {
      const card = this.#cardOf(entry.id);
      if (place && card.element === place.nextElementSibling) {
        this.#move(place, null); // one card goes down the list, and not all the others up
        place = card.element;
      }
      if (card.element === place) place = place.nextElementSibling;
      else this.#move(card.element, place);
      card.show(entry); // in its place, because a strip of previews has no width to scroll before
    }
  }

  /** Brings the times on the cards up to date. */
  tick() {
    for (const card of this.#cards.values()) if (!isFinished(card.entry)) card.tick();
  }

  /** Says on a job's card why something came to nothing. */
  complain(id, sentence) {
    this.#cards.get(id)?.note(sentence);
  }

  /** Leaves the focus where it is; `moveBefore`, where there is one, also animations and scroll positions. */
  #move(element, place) {
    if (element.isConnected && this.#root.moveBefore) {
      this.#root.moveBefore(element, place);
      return;
    }
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    this.#root.insertBefore(element, place);
    focused?.focus({ preventScroll: true });
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
