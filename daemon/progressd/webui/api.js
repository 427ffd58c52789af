/** The REST endpoints of the page, one function each. A rejected request throws an error with the server's sentence. */

import { credentials, currentKey, refused } from './access.js';
import { learnFrom } from './clock.js';
import { batchPath, jobPath } from './job.js';
import { sentence, t } from './text.js';

const TIMEOUT_MS = 15_000;

const noServer = () => t('The server cannot be reached. Try again when it is back.');
const noAnswer = () => t('The server did not answer. Try again.');

/** The server rejected the request. */
export class Refusal extends Error {
  /**
   * @param {number} status HTTP status
   * @param {{error?: string, message?: string, code?: string, retry_after?: number}} body
   */
  constructor(status, body) {
    const proxy = status >= 502 && status <= 504; // a proxy whose daemon does not respond
    const english = body?.message ?? body?.error;
    super(typeof english === 'string' && english ? sentence(english, body.code) : proxy ? noServer() : t('The server answered with HTTP status {status}.', { status }));
    this.status = status;
    this.retryAfter = body?.retry_after ?? 0; // seconds
  }
}

/** The server did not respond. */
export class Unreachable extends Error {}

/** Returns the error for a rejected request. `used`: the key of the request. */
export function refusal(status, body, used) {
  const error = new Refusal(status, body);
  if (status === 401) refused(used, error.message);
  return error;
}

/**
 * Sends a request with the key of this tab, or with a token.
 * @param {string} path relative to the base of the page
 * @param {RequestInit & {token?: ?string}} [options]
 * @returns {Promise<Response>} a successful response
 * @throws {Refusal | Unreachable}
 */
export async function send(path, { token = null, ...options } = {}) {
  const used = currentKey();
  const url = new URL(path, document.baseURI);
  if (token) url.searchParams.set('token', token);
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  const headers = token ? {} : credentials();
  const response = await fetch(url, { headers, cache: 'no-cache', signal, ...options }).catch((error) => {
    throw new Unreachable(error.name === 'TimeoutError' ? noAnswer() : noServer());
  });
  learnFrom(response.headers.get('Date'));
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw token ? new Refusal(response.status, body) : refusal(response.status, body, used);
}

/**
 * Sends a request as `send` does.
 * @param {string} path @param {string} [method] @param {RequestInit & {token?: ?string}} [options]
 * @returns {Promise<any>} the JSON of the response
 */
export async function request(path, method = 'GET', options = {}) {
  const response = await send(path, { method, ...options });
  const body = await response.json().catch(() => null);
  if (body === null) throw new Error(t('The server sent an answer that this page cannot read. Reload the page.'));
  return body;
}

export const listPipelines = async () => (await request('api/pipelines')).pipelines;
export const whoAmI = () => request('api/auth/status');
export const health = () => request('api/health');

/**
 * @param {URLSearchParams} params
 * @returns {Promise<{jobs: object[], total: number, next?: string, counts?: Record<string, number>,
 *   exact?: false}>} a page of jobs
 */
export const listJobs = (params) => request(`api/jobs?${params}`);

export const getJob = (id) => request(jobPath(id));

/** @param {string} id @param {boolean} [keepalive] whether the request must outlive the page */
export const cancelJob = (id, keepalive) => request(jobPath(id), 'DELETE', { keepalive });
export const deleteJob = (id) => request(jobPath(id, '?purge=true'), 'DELETE');
export const getBatch = (id) => request(batchPath(id));
export const cancelBatch = (id, keepalive) => request(batchPath(id), 'DELETE', { keepalive });
export const retryJob = (id) => request(jobPath(id, '/retry'), 'POST');

/** A link cannot carry a key, so it contains a short-lived token. @param {string} path of a job or batch */
export async function signedUrl(path) {
  const { token } = await request(`${path}/token`, 'POST');
  return `${path}/download?token=${encodeURIComponent(token)}`;
}
export const signedDownloadUrl = (id) => signedUrl(jobPath(id));
