/** The list as cards, for few jobs. It is loaded when it is needed. */

import { BatchCard } from './batch-card.js';
import { JobCard } from './job-card.js';
import { JobList } from './job-list.js';

/** @param {HTMLElement} root @param {Record<string, Function>} actions by their buttons' `data-action` */
export async function newCards(root, actions) {
  await loadStyle(new URL('job-card.css', import.meta.url));
  const newCard = ({ batch }) => (batch ? new BatchCard(newList) : new JobCard());
  const newList = (element) => new JobList(element, actions, newCard);
  return newList(root);
}

function loadStyle(url) {
  const link = document.createElement('link');
  link.rel = 'stylesheet';
  link.href = url;
  const loaded = new Promise((resolve) => { link.onload = link.onerror = resolve; });
  document.head.append(link);
  return loaded;
}
