/** The list as cards, for few jobs. It is loaded when it is needed. */

import { loadStyle } from './dom.js';
import { JobCard } from './job-card.js';
import { JobList } from './job-list.js';

let BatchCard = null; // few pages show a batch

/**
 * @param {HTMLElement} root
 * @param {Record<string, Function>} actions by their buttons' `data-action`
 * @param {(id: string) => object} marksOf what the user has done with a job
 */
export async function newCards(root, actions, marksOf) {
  await loadStyle('job-card.css');
  const newCard = ({ batch }) => (batch ? new BatchCard(newList) : new JobCard(marksOf));
  const newList = (element) => new JobList(element, actions, newCard);
  return new Cards(root, actions, newCard);
}

class Cards extends JobList {
  #entries = [];

  /** @param {import('./job-list.js').Entry[]} entries */
  show(entries) {
    this.#entries = entries;
    const isComplete = BatchCard || !entries.some(({ batch }) => batch);
    super.show(isComplete ? entries : entries.filter(({ batch }) => !batch));
    if (!isComplete) this.#loadBatchCard();
  }

  async #loadBatchCard() {
    const loaded = await import('./batch-card.js').catch(() => null); // the next change tries again
    if (!loaded) return;
    ({ BatchCard } = loaded);
    this.show(this.#entries);
  }
}
