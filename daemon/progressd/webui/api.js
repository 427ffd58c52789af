/** The REST endpoints of the page, one function each. A rejected request throws an error with the server's sentence. */

import { credentials, currentKey, refused } from './access.js';
import { learnFrom } from './clock.js';
import { sentence, t } from './text.js';

const TIMEOUT_MS = 10_000;

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
    super(english ? sentence(english, body.code) : proxy ? noServer() : t('The server answered with HTTP status {status}.', { status }));
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

const jobUrl = (id, rest = '') => `api/jobs/${encodeURIComponent(id)}${rest}`;

async function request(url, method = 'GET', keepalive = false) {
  const used = currentKey();
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  const headers = credentials();
  const response = await fetch(url, { method, headers, cache: 'no-cache', signal, keepalive }).catch((error) => {
    throw new Unreachable(error.name === 'TimeoutError' ? noAnswer() : noServer());
  });
  learnFrom(response.headers.get('Date'));
  const body = await response.json().catch(() => null);
  if (!response.ok) throw refusal(response.status, body, used);
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

export const getJob = (id) => request(jobUrl(id));

/** @param {string} id @param {boolean} [isLeaving] whether the request must outlive the page */
export const cancelJob = (id, isLeaving) => request(jobUrl(id), 'DELETE', isLeaving);
export const deleteJob = (id) => request(jobUrl(id, '?purge=true'), 'DELETE');
export const getBatch = (id) => request(`api/batch/${encodeURIComponent(id)}`);
export const cancelBatch = (id, isLeaving) => request(`api/batch/${encodeURIComponent(id)}`, 'DELETE', isLeaving);
export const retryJob = (id) => request(jobUrl(id, '/retry'), 'POST');
export const downloadUrl = (id) => jobUrl(id, '/download');

/** A link cannot carry a header, so it contains a short-lived token for this one job. */
export async function signedDownloadUrl(id) {
  const { token } = await request(jobUrl(id, '/token'), 'POST');
  return `${downloadUrl(id)}?token=${encodeURIComponent(token)}`;
}
