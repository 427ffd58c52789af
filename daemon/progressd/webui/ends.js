/** Tells the user that jobs have ended: screen readers, and the browser's notifications. It is loaded at the first end. */

import { byId } from './dom.js';
import { nameOf } from './job-text.js';
import { isOfUser } from './stars.js';
import { sentence, t } from './text.js';

/** Ends within this time are announced in one sentence. */
const ANNOUNCE_MS = 1000;

let announced = [];

/** @param {import('./jobs.js').Job} job that has ended */
export function tell(job) {
  if (isOfUser(job.id) && document.hidden && globalThis.Notification?.permission === 'granted') notify(job);
  announce(job);
}

/** Screen readers announce only the end of a job, and many ends in one sentence. */
export function announce(entry) {
  if (!announced.length) setTimeout(announceAll, ANNOUNCE_MS);
  announced.push(entry);
}

function announceAll() {
  const n = announced.length;
  const failed = announced.filter((entry) => entry.status === 'failed').length;
  byId('announcements').textContent = n === 1 ? sentenceOf(announced[0]) : t('{n} jobs have ended, {failed} failed.', { n, failed });
  announced = [];
}

/** A job that the user started here or starred has ended while the page is hidden. */
function notify(job) {
  try {
    const notification = new Notification(sentenceOf(job), { body: sentence(job.error ?? ''), tag: job.id });
    notification.addEventListener('click', () => {
      window.focus();
      notification.close();
    });
  } catch {
    // Chromium on Android allows notifications only to service workers.
  }
}

function sentenceOf(entry) {
  const name = nameOf(entry);
  return {
    completed: t('{name} is done.', { name }),
    failed: t('{name} failed.', { name }),
    cancelled: t('{name} was cancelled.', { name }),
  }[entry.status];
}
