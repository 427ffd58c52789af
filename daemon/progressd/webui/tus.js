/** A small client of tus 1.0 (https://tus.io): one request creates an upload, and one sends the bytes that are missing. */

import { credentials, currentKey } from './access.js';
import { refusal, Unreachable } from './api.js';
import { t } from './text.js';

const URL_OF_UPLOADS = 'api/uploads';
const OCTETS = 'application/offset+octet-stream';
const TUS = { 'Tus-Resumable': '1.0.0' };

/** How long a request without a body may take. */
const TIMEOUT_MS = 20_000;

/**
 * What the server knows about an upload.
 * @typedef {object} State
 * @property {string} [url] of a new upload
 * @property {number} offset the bytes that the server has
 * @property {string} [jobId] once the upload has become a job
 * @property {string} [batchId]
 */

/** Bytes by which the server recognizes a wrong type of file. */
const HEAD_BYTES = 1024;

/**
 * Creates an upload. The server can reject a file by its first bytes; the last bytes are never sent here, because the
 * URL of the upload could be lost.
 * @param {File} file
 * @param {Record<string, string>} metadata
 * @param {AbortSignal} signal
 * @returns {Promise<State>}
 */
export function create(file, metadata, signal) {
  const pairs = Object.entries({ filename: file.name, filetype: file.type, ...metadata });
  const headers = {
    'Upload-Length': String(file.size),
    'Upload-Metadata': pairs.map(([name, value]) => `${name} ${base64(value)}`).join(),
  };
  if (file.size <= HEAD_BYTES) return send('POST', URL_OF_UPLOADS, { headers, signal });
  const body = file.slice(0, HEAD_BYTES, OCTETS);
  return send('POST', URL_OF_UPLOADS, { headers: { ...headers, 'Content-Type': OCTETS }, body, signal });
}

/**
 * Asks how many bytes have arrived.
 * @param {string} url @param {AbortSignal} signal
 * @returns {Promise<State>}
 */
export const stateOf = (url, signal) => send('HEAD', url, { signal });

/**
 * Sends the rest of a file.
 * @param {string} url
 * @param {File} file
 * @param {number} offset
 * @param {(sent: number) => void} onSent receives the bytes of the file that have left, with those before
 * @param {AbortSignal} signal
 * @returns {Promise<State>}
 */
export function append(url, file, offset, onSent, signal) {
  const headers = { 'Upload-Offset': String(offset), 'Content-Type': OCTETS };
  return send('PATCH', url, { headers, body: file.slice(offset), onSent: (sent) => onSent(offset + sent), signal });
}

/** Deletes an upload. @param {string} url */
export const terminate = (url) => send('DELETE', url);

/** XMLHttpRequest, because fetch does not report how much of a body has been sent. */
function send(method, url, { headers = {}, body, onSent, signal } = {}) {
  const used = currentKey();
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open(method, url);
    for (const [name, value] of Object.entries({ ...TUS, ...credentials(), ...headers })) {
      xhr.setRequestHeader(name, value);
    }
    if (onSent) xhr.upload.onprogress = ({ loaded }) => onSent(loaded);
    if (!body) xhr.timeout = TIMEOUT_MS;
    xhr.onload = () => {
      if (xhr.status < 300) resolve(stateIn(xhr));
      else reject(refusal(xhr.status, parsed(xhr.responseText), used));
    };
    xhr.onerror = xhr.ontimeout = () => reject(new Unreachable(t('The server cannot be reached.')));
    xhr.onabort = () => reject(signal.reason);
    signal?.throwIfAborted();
    signal?.addEventListener('abort', () => xhr.abort());
    xhr.send(body);
  });
}

function stateIn(xhr) {
  const location = xhr.getResponseHeader('Location');
  return {
    url: location ? new URL(location, xhr.responseURL).href : undefined,
    offset: Number(xhr.getResponseHeader('Upload-Offset')),
    jobId: xhr.getResponseHeader('Progressd-Job-Id') ?? undefined,
    batchId: xhr.getResponseHeader('Progressd-Batch-Id') ?? undefined,
  };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // from a proxy, or to HEAD
  }
}

const base64 = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));
