/** Jobs are cancelled after a few seconds in which the user can undo it, or at once when the page is left. */

import { nameOf } from './job-text.js';
import { t } from './text.js';

const UNDO_MS = 5000;

export class Cancelling {
  /** @type {Map<string, {entries: object[], timer: number, close: () => void}>} */
  #pending = new Map();
  #listener;

  /**
   * @param {object} listener
   * @param {(sentence: string, onUndo: () => void) => () => void} listener.offerUndo
   * @param {(entries: object[], isLeaving: boolean) => void} listener.onCancel
   * @param {() => void} listener.onChange
   */
  constructor(listener) {
    this.#listener = listener;
    window.addEventListener('pagehide', () => {
      for (const group of new Set(this.#pending.values())) this.#end(group, true);
    });
  }

  /** @param {string} id @returns {boolean} whether the job or batch is about to be cancelled */
  has(id) {
    return this.#pending.has(id);
  }

  /** @param {object[]} chosen jobs or batches */
  add(chosen) {
    const entries = chosen.filter(({ id }) => !this.#pending.has(id));
    if (!entries.length) return;
    const group = { entries };
    group.close = this.#listener.offerUndo(sentenceFor(entries), () => this.#forget(group));
    group.timer = setTimeout(() => this.#end(group, false), UNDO_MS);
    for (const { id } of entries) this.#pending.set(id, group);
    this.#listener.onChange();
  }

  #end(group, isLeaving) {
    this.#forget(group);
    this.#listener.onCancel(group.entries, isLeaving);
  }

  #forget(group) {
    clearTimeout(group.timer);
    group.close();
    for (const { id } of group.entries) this.#pending.delete(id);
    this.#listener.onChange();
  }
}

function sentenceFor([first, ...others]) {
  if (others.length) return t('{n} job will be cancelled. | {n} jobs will be cancelled.', { n: others.length + 1 });
  return first.batch ? t('The batch will be cancelled.') : t('{name} will be cancelled.', { name: nameOf(first) });
}
