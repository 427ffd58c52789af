/** The jobs that the user started here or starred. When one ends while the page is hidden, the browser notifies. */

import { nameOf } from './job-text.js';
import { choose, parsed, setting } from './settings.js';
import { sentence, t } from './text.js';

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

/** @param {import('./jobs.js').Job} job that has ended */
export function ended(job) {
  if (!stars.has(job.id) && !started.has(job.id)) return;
  started.delete(job.id);
  if (!document.hidden || globalThis.Notification?.permission !== 'granted') return;
  const name = nameOf(job);
  const title = {
    completed: t('{name} is done.', { name }),
    failed: t('{name} failed.', { name }),
    cancelled: t('{name} was cancelled.', { name }),
  }[job.status];
  try {
    const notification = new Notification(title, { body: sentence(job.error ?? ''), tag: job.id });
    notification.addEventListener('click', () => {
      window.focus();
      notification.close();
    });
  } catch {
    // Chromium on Android allows notifications only to service workers.
  }
}

/** The browser asks the user only after a star, never before. */
function askForPermission() {
  if (globalThis.Notification?.permission === 'default') Notification.requestPermission();
}
