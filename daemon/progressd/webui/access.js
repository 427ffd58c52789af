/** The key to a server that asks for one: in this tab only, until the tab is closed or somebody signs out. */

const ITEM = 'progressd-key';

/** What can stand in a header; a key has nothing else. */
const POSSIBLE = /^[\x21-\x7e]+$/;

/** Where the browser keeps nothing for this page, the key lasts until it is loaded again. */
const storage = (() => {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
})();

let key = storage?.getItem(ITEM) ?? null;
let listener = () => {};

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

/** @returns {Record<string, string>} the headers of a request that is made with the key */
export const credentials = () => (key === null ? {} : { Authorization: `Bearer ${key}` });

/** @param {(sentence: string) => void} tell gets the server's sentence when it refuses the key, or wants one */
export function onRefused(tell) {
  listener = tell;
}

/** The server has refused a request that was made with `used`; one that was made with an earlier key says nothing. */
export function refused(used, sentence) {
  if (used === key) listener(sentence);
}
