/** Unfinished uploads, kept in the browser across reloads. The file itself must be chosen again. */

import { currentKey } from './access.js';

const PREFIX = `progressd-upload ${new URL('.', document.baseURI).pathname} `;

/** The server keeps unfinished uploads for a day. */
const MAX_AGE_MS = 24 * 3600 * 1000;

/** Another tab is sending an upload that it has stored more recently than this. */
const ALIVE_MS = 10_000;

/** Marks the uploads of this tab, also after a reload. */
const TAB = 'progressd-tab';

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
function storageOf(name) {
  try {
    return window[name];
  } catch {
    return null;
  }
}

const storage = storageOf('localStorage');
const session = storageOf('sessionStorage');

function ownTab() {
  if (!session?.getItem(TAB)) session?.setItem(TAB, String(crypto.getRandomValues(new Uint32Array(2))));
  return session?.getItem(TAB);
}

const CHOICE = `progressd-pipeline ${new URL('.', document.baseURI).pathname}`;

/** @returns {string | null} the name of the pipeline that was chosen last */
export const chosenPipeline = () => storage?.getItem(CHOICE) ?? null;

/** @param {string} name */
export const rememberPipeline = (name) => storage?.setItem(CHOICE, name);

/** @param {Remembered} upload */
export function remember(upload) {
  try {
    storage?.setItem(PREFIX + upload.id, JSON.stringify({ ...upload, tab: ownTab(), at: Date.now() }));
  } catch {
    // The storage is full: the upload only does not survive a reload.
  }
}

/** @param {string} id */
export const forget = (id) => storage?.removeItem(PREFIX + id);

/** @returns {Remembered[]} the uploads of closed tabs and of this one */
export function remembered() {
  const names = storage ? Object.keys(storage).filter((name) => name.startsWith(PREFIX)) : [];
  const all = names.map((name) => JSON.parse(storage.getItem(name)));
  return all.filter(({ id, url, tab, at }) => {
    const age = Date.now() - at;
    const isKept = age <= MAX_AGE_MS && (url || currentKey() === null); // the server checks the key of an upload
    if (!isKept) forget(id);
    return isKept && (tab === session?.getItem(TAB) || age > ALIVE_MS);
  });
}

/** Whether a chosen file is that of an unfinished upload. @param {File} file @param {Remembered} upload */
export const isSame = (file, { name, size, modified }) =>
  file.name === name && file.size === size && file.lastModified === modified;
