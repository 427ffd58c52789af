/** The REST endpoints the page uses, a function each; a refusal is thrown with the server's sentence. */

import { learnFrom } from './clock.js';

const TIMEOUT_MS = 10_000;

/** The server answered, and said no. */
export class Refusal extends Error {
  /**
   * @param {number} status HTTP status
   * @param {{error?: string, message?: string, retry_after?: number}} body
   */
  constructor(status, body) {
    super(body?.message ?? body?.error ?? `The server answered ${status}.`);
    this.status = status;
    this.retryAfter = body?.retry_after ?? 0; // seconds
  }
}

const jobUrl = (id, rest = '') => `api/jobs/${encodeURIComponent(id)}${rest}`;

async function request(url, method = 'GET') {
  const response = await fetch(url, { method, cache: 'no-cache', signal: AbortSignal.timeout(TIMEOUT_MS) });
  learnFrom(response.headers.get('Date'));
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Refusal(response.status, body);
  if (body === null) throw new Error('The answer was not JSON.');
  return body;
}

export const health = () => request('api/health');
export const listJobs = async (limit) => (await request(`api/jobs?limit=${limit}`)).jobs;
export const getJob = (id) => request(jobUrl(id));
export const cancelJob = (id) => request(jobUrl(id), 'DELETE');
export const retryJob = (id) => request(jobUrl(id, '/retry'), 'POST');
export const downloadUrl = (id) => jobUrl(id, '/download');

/**
 * Sends one file. XMLHttpRequest, because fetch does not tell how much of a body has been sent.
 * @param {File} file
 * @param {object} options
 * @param {(sent: number, total: number) => void} onSent bytes
 * @param {AbortSignal} signal
 * @returns {Promise<{job_id: string, status: string, created_at: string}>}
 */
export function convert(file, options, onSent, signal) {
  const form = new FormData();
  form.append('options', JSON.stringify(options));
  form.append('file', file);
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open('POST', 'api/convert');
    xhr.responseType = 'json';
    xhr.upload.onprogress = ({ loaded, total }) => onSent(loaded, total);
    xhr.onload = () => {
      if (xhr.status < 300 && xhr.response) resolve(xhr.response);
      else reject(new Refusal(xhr.status, xhr.response));
    };
    xhr.onerror = () => reject(new Error('The file was not sent: the connection broke, or the file changed.'));
    xhr.onabort = () => reject(signal.reason);
    signal.addEventListener('abort', () => xhr.abort());
    xhr.send(form);
  });
}
