/** What the page says in place of an empty list. It is loaded when the list is empty. */

import { setText } from './dom.js';
import { isFiltered } from './query.js';
import { t } from './text.js';

/** @param {HTMLElement} root @param {import('./query.js').Query} query */
export function describe(root, query) {
  const { tab } = query;
  const isFound = isFiltered(query);
  const titles = {
    running: t('No job is running'),
    waiting: t('No job is waiting'),
    attention: t('Nothing needs a look'),
    done: t('No job has finished yet'),
    all: t('No jobs yet'),
  };
  const hints = {
    running: t('Running jobs appear here automatically.'),
    waiting: t('Jobs that wait for their turn appear here.'),
    attention: t('Failed jobs appear here, and jobs that are silent or slower than usual.'),
    done: t('Completed, failed and cancelled jobs appear here.'),
    all: t('Jobs of all programs appear here automatically.'),
  };
  setText(root.querySelector('.empty-title'), isFound ? t('No job matches') : titles[tab]);
  setText(root.querySelector('[data-part=hint]'), isFound ? t('Try other words or fewer filters.') : hints[tab]);
  root.querySelector('button').hidden = !isFound;
  root.hidden = false;
}
