/** The user's choices on this page, stored in the browser. */

const PREFIX = 'progressd-';

/** A browser may store nothing for this page. */
const storage = (() => {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
})();

/** @param {string} name @returns {string | null} null until the user has chosen */
export const setting = (name) => storage?.getItem(PREFIX + name) ?? null;

/** @param {string} name @param {string | null} value null to forget the choice */
export function choose(name, value) {
  try {
    if (value === null) storage?.removeItem(PREFIX + name);
    else storage?.setItem(PREFIX + name, value);
  } catch {
    // The storage is full: the choice holds until the page is closed.
  }
}

/** Reads JSON that an extension, an older version or a person may have changed. @returns {?any} null if it is not JSON */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Whether this browser may have kept unfinished uploads, which `remembered.js` reads. */
export const mayHaveUploads = () => Object.keys(storage ?? {}).some((name) => name.startsWith(`${PREFIX}upload `));
