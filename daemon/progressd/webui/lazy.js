/** Modules that only some pages need. After an update of the daemon, those of an open page are gone. */

import { t } from './text.js';

const ITEM = 'progressd-reloaded';

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
    const own = await fetch(import.meta.url, { method: 'HEAD', cache: 'no-store' }).catch(() => null);
    if (own?.status !== 404) throw new Error(t('The server cannot be reached. Try again when it is back.'));
    if (mayReload && isFirst()) location.reload();
    throw new Error(t('The server was updated. Reload the page.'));
  }
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
