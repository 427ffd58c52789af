/** After an update of the daemon, an open page is old: the modules that it has not loaded yet are gone. */

import { byId } from './dom.js';
import { t } from './text.js';

const ITEM = 'progressd-reloaded';

/** A page without a connection, such as that of a finished job, is checked when the user returns to it. */
const CHECK_MS = 60_000;

let checkedAt = performance.now();

/**
 * Loads a module. If the daemon was updated, the page loads itself again, once.
 * @template T
 * @param {() => Promise<T>} load with `import`
 * @param {boolean} mayReload false if a reload would lose something
 * @returns {Promise<T>}
 */
export async function lazily(load, mayReload) {
  try {
    return await load();
  } catch {
    const found = await status();
    if (!found) throw new Error(t('The server cannot be reached. Try again when it is back.'));
    if (mayReload && isFirst()) location.reload();
    if (found !== 404) throw new Error(t('This part of the page could not be loaded. Reload the page.')); // browsers do not try again
    offerReload();
    throw new Error(t('The server was updated. Reload the page.'));
  }
}

/** Offers to load the page again if the daemon was updated. Pages call it when they reach the server again. */
export async function checkVersion() {
  checkedAt = performance.now();
  if ((await status()) === 404) offerReload();
}

/**
 * The address of this module contains the version of the page. A cache between the browser and the server is bypassed.
 * @returns {Promise<number>} 404 if the daemon was updated; 0 if it does not answer
 */
async function status() {
  const response = await fetch(`${import.meta.url}?${Date.now()}`, { method: 'HEAD', cache: 'no-store' }).catch(() => null);
  return response && (response.ok || response.status === 404) ? response.status : 0;
}

/** The page never reloads itself under the hands of the user. */
function offerReload() {
  byId('update')?.removeAttribute('hidden');
}

/** Whether this version of the page has not loaded itself again yet. */
function isFirst() {
  try {
    const isAgain = sessionStorage.getItem(ITEM) === import.meta.url;
    sessionStorage.setItem(ITEM, import.meta.url);
    return !isAgain;
  } catch {
    return false; // without storage, it could go on forever
  }
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && performance.now() - checkedAt > CHECK_MS) checkVersion();
});
byId('update')?.querySelector('button').addEventListener('click', () => location.reload());
