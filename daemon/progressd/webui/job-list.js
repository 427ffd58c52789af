/** The list of cards, in the order of the given entries. */

import { isConfirmed } from './confirm.js';
import { isFinished } from './jobs.js';

/**
 * @typedef {import('./job-card.js').Entry | import('./batches.js').Batch} Entry
 * @typedef {import('./job-card.js').JobCard | import('./batch-card.js').BatchCard} Card
 */

const isOver = (entry) => isFinished(entry) || entry.status === 'partially_completed';

export class JobList {
  #root;
  #newCard;
  /** @type {Map<string, Card>} */
  #cards = new Map();

  /**
   * @param {HTMLElement} root
   * @param {Record<string, (entry: Entry) => Promise<void> | void>} actions by their buttons' `data-action`
   * @param {(entry: Entry) => Card} newCard
   */
  constructor(root, actions, newCard) {
    this.#root = root;
    this.#newCard = newCard;
    root.addEventListener('click', ({ target }) => {
      const button = target.closest('button[data-action]');
      const action = actions[button?.dataset.action];
      if (action && button.closest('.jobs') === root) this.#act(button, action);
    });
    root.addEventListener('keydown', (event) => this.#pressed(event));
  }

  /** @param {Entry[]} entries */
  show(entries) {
    const stay = new Set(entries.map((entry) => entry.id));
    for (const [id, card] of this.#cards) if (!stay.has(id)) this.#drop(id, card);
    let place = this.#root.firstElementChild;
    for (const entry of entries) {
      const card = this.#cardOf(entry);
      if (place && card.element === place.nextElementSibling) {
        this.#move(place, null); // move one card down instead of all other cards up
        place = card.element;
      }
      if (card.element === place) place = place.nextElementSibling;
      else this.#move(card.element, place);
      card.show(entry); // after the insertion: a strip of previews has no width to scroll before
    }
  }

  /** Updates the times on the cards. */
  tick() {
    for (const card of this.#cards.values()) if (!isOver(card.entry)) card.tick();
  }

  /** Moves the focus to the first card. */
  focus() {
    this.#root.querySelector('.job')?.focus();
  }

  /** Clears the notes about failed actions. */
  clearNotes() {
    for (const card of this.#cards.values()) card.clearNotes();
  }

  /** Shows on a job's card why an action failed. */
  complain(id, sentence) {
    if (this.#cards.has(id)) this.#cards.get(id).note(sentence);
    else for (const card of this.#cards.values()) card.complain?.(id, sentence);
  }

  /** Moves a card and keeps the focus. `moveBefore`, if available, also keeps animations and scroll positions. */
  #move(element, place) {
    if (element.isConnected && this.#root.moveBefore) {
      this.#root.moveBefore(element, place);
      return;
    }
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    this.#root.insertBefore(element, place);
    focused?.focus({ preventScroll: true });
  }

  /** The arrows move over the visible cards, also over those of an open batch. */
  #pressed(event) {
    const { key, target } = event;
    if (key === 'Enter' && target.matches('.job')) target.querySelector('.job-name a, [data-action=toggle]').click();
    const step = { ArrowDown: 1, ArrowUp: -1 }[key];
    if (!step || event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const all = [...this.#root.closest('.jobs:not(.batch-jobs)').querySelectorAll('.job')].filter((one) => one.checkVisibility());
    all[all.indexOf(target.closest('.job')) + step]?.focus();
  }

  #cardOf(entry) {
    if (!this.#cards.has(entry.id)) this.#cards.set(entry.id, this.#newCard(entry));
    return this.#cards.get(entry.id);
  }

  #drop(id, card) {
    const { element } = card;
    const focused = element.contains(document.activeElement);
    const next = element.nextElementSibling ?? element.previousElementSibling ?? this.#root.closest('[tabindex]');
    element.remove();
    if (focused) next?.focus({ preventScroll: true });
    this.#cards.delete(id);
  }

  async #act(button, action) {
    if (button.ariaBusy === 'true') return;
    if (button.dataset.question && !isConfirmed(button, button.dataset.question)) return;
    const { dataset } = button.closest('.job');
    const card = this.#cards.get(dataset.jobId ?? dataset.uploadId ?? dataset.batchId);
    button.ariaBusy = 'true';
    card.note('');
    try {
      await action(card.entry, button);
    } catch (error) {
      card.note(error.message);
    } finally {
      button.ariaBusy = null;
    }
  }
}
