/** The right to read: the key of this tab, or the token in the link that opened the page. */

import { credentials, currentKey, refused } from './access.js';
import { Refusal, Unreachable } from './api.js';
import { learnFrom } from './clock.js';
import { t } from './text.js';

const TIMEOUT_MS = 15_000;

/** The token in the fragment of the address. Browsers send fragments to no server. */
export const token = new URLSearchParams(location.hash.slice(1)).get('token');

/** @returns {{token?: string, key?: string}} for `watch` */
export const pass = () => (token ? { token } : currentKey() === null ? {} : { key: currentKey() });

/**
 * Sends a request with the key or token.
 * @param {string} path relative to the base of the page
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} a successful response
 * @throws {Refusal | Unreachable}
 */
export async function send(path, options = {}) {
  const used = currentKey();
  const url = new URL(path, document.baseURI);
  if (token) url.searchParams.set('token', token);
  const signal = options.signal ?? AbortSignal.timeout(TIMEOUT_MS);
  const headers = { ...(token ? {} : credentials()), ...options.headers };
  const response = await fetch(url, { cache: 'no-cache', ...options, headers, signal }).catch((error) => {
    throw new Unreachable(error.name === 'TimeoutError'
      ? t('The server did not answer. Try again.')
      : t('The server cannot be reached. Try again when it is back.'));
  });
  learnFrom(response.headers.get('Date'));
  if (response.ok) return response;
  const error = new Refusal(response.status, await response.json().catch(() => null));
  if (response.status === 401 && !token) refused(used, error.message);
  throw error;
}

/** @returns {Promise<any>} the JSON of the response */
export const request = async (path, method = 'GET') => (await send(path, { method })).json();

/** @param {string} id @param {string} [rest] */
export const jobPath = (id, rest = '') => `api/jobs/${encodeURIComponent(id)}${rest}`;
