/** The API key for a server that requires one. It stays in this tab until the tab is closed or the user signs out. */

import { parsed } from './settings.js';

const ITEM = 'progressd-key';

/** The characters allowed in a header; a key has no others. */
const POSSIBLE = /^[\x21-\x7e]+$/;

/** If the browser stores nothing for this page, the key lasts until the page is reloaded. */
const storage = (() => {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
})();

const stored = storage?.getItem(ITEM) ?? '';
let key = POSSIBLE.test(stored) ? stored : null;
let listener = () => {};

const TYPED = 'progressd-typed';

/** @returns {Record<string, any>} what the user has entered in this tab; it stays across reloads until it is locked */
export const typed = () => Object(parsed(storage?.getItem(TYPED) ?? null));

/** @param {Record<string, any>} values */
export const keepTyped = (values) => storage?.setItem(TYPED, JSON.stringify(values));
export const forgetTyped = () => storage?.removeItem(TYPED);

/** @returns {string | null} */
export const currentKey = () => key;

/** @param {string} text */
export const isPossible = (text) => POSSIBLE.test(text);

/** @param {string | null} next null to forget it */
export function useKey(next) {
  key = next;
  if (next === null) storage?.removeItem(ITEM);
  else storage?.setItem(ITEM, next);
}

/** @returns {Record<string, string>} the headers of a request with the key */
export const credentials = () => (key === null ? {} : { Authorization: `Bearer ${key}` });

/** @param {(sentence: string) => void} tell receives the server's sentence when it rejects the key or requires one */
export function onRefused(tell) {
  listener = tell;
}

/** Handles a rejected request with the key `used`. Rejections of earlier keys are ignored. */
export function refused(used, sentence) {
  if (used === key) listener(sentence);
}
