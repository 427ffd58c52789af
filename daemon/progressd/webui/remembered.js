/** Unfinished uploads, kept in the browser across reloads. The file itself must be chosen again. */

import { currentKey } from './access.js';
import { parsed } from './settings.js';

const PREFIX = `progressd-upload ${new URL('.', document.baseURI).pathname} `;

/** The server keeps unfinished uploads for a day. */
const MAX_AGE_MS = 24 * 3600 * 1000;

/** How long the page waits for other tabs. */
const ANSWER_MS = 300;

const QUESTION = 'which?';

/**
 * @typedef {object} Remembered
 * @property {string} id
 * @property {string} name of the file
 * @property {number} size @property {number} modified of the file
 * @property {Record<string, string>} metadata
 * @property {string} [url] once the server knows the upload
 * @property {number} sent
 */

/** Without storage, an upload continues only until the page is closed. */
const storage = (() => {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
})();

const channel = new BroadcastChannel(PREFIX);

/** Tells other tabs which uploads this tab is sending. @param {() => string[]} ids */
export function answerOtherTabs(ids) {
  channel.addEventListener('message', ({ data }) => {
    if (data === QUESTION) channel.postMessage(ids());
  });
}

/** @returns {Promise<Set<string>>} the uploads that other tabs are sending */
async function ofOtherTabs() {
  const found = new Set();
  const collect = ({ data }) => { if (data !== QUESTION) for (const id of data) found.add(id); };
  channel.addEventListener('message', collect);
  channel.postMessage(QUESTION);
  await new Promise((resolve) => { setTimeout(resolve, ANSWER_MS); });
  channel.removeEventListener('message', collect);
  return found;
}

/** @param {Remembered} upload */
export function remember(upload) {
  try {
    storage?.setItem(PREFIX + upload.id, JSON.stringify({ ...upload, at: Date.now() }));
  } catch {
    // The storage is full: the upload only does not survive a reload.
  }
}

/** @param {string} id */
export const forget = (id) => storage?.removeItem(PREFIX + id);

/** Forgets what is not a record: an extension or a person may have changed it. */
function recordOf(name) {
  const record = parsed(storage.getItem(name));
  const isRecord = record && PREFIX + record.id === name && record.name && record.size >= 0 && Object(record.metadata) === record.metadata;
  if (!isRecord) storage.removeItem(name);
  return isRecord ? record : null;
}

/** @returns {Promise<Remembered[]>} the uploads that no tab is sending */
export async function remembered() {
  const names = storage ? Object.keys(storage).filter((name) => name.startsWith(PREFIX)) : [];
  if (!names.length) return [];
  const busy = await ofOtherTabs();
  const all = names.map((name) => recordOf(name)).filter((record) => record && !busy.has(record.id));
  return all.filter(({ id, url, at }) => {
    // The server checks the key of an upload that it knows. Others may belong to someone who has signed out.
    const isKept = Date.now() - at <= MAX_AGE_MS && (url || currentKey() === null);
    if (!isKept) forget(id);
    return isKept;
  });
}

/** Whether a chosen file is that of an unfinished upload. @param {File} file @param {Remembered} upload */
export const isSame = (file, { name, size, modified }) =>
  file.name === name && file.size === size && file.lastModified === modified;
