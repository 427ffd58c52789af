/** The jobs that the user started here or starred. When one ends while the page is hidden, the browser notifies. */

import { choose, parsed, setting } from './settings.js';

const MAX_STARS = 500;

/** @type {Set<string>} */
const stars = new Set([parsed(setting('stars'))].flat().filter((id) => typeof id === 'string'));
const started = new Set();

/** @param {string} id */
export const isStarred = (id) => stars.has(id);

/** Stars a job, or removes its star. @param {string} id */
export function star(id) {
  if (!stars.delete(id)) {
    stars.add(id);
    if (stars.size > MAX_STARS) stars.delete(stars.values().next().value);
    askForPermission();
  }
  choose('stars', stars.size ? JSON.stringify([...stars]) : null);
}

/** Remembers a job that the user started here, until the page is closed. @param {string} id */
export function startedHere(id) {
  started.add(id);
}

/** Whether the user started the job here, or starred it. @param {string} id */
export const isOfUser = (id) => stars.has(id) || started.has(id);

/** The browser asks the user only after a star, never before. */
function askForPermission() {
  if (globalThis.Notification?.permission === 'default') Notification.requestPermission();
}
