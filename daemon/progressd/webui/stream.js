/** The stream of `/ws/jobs`: reopened with back-off, resumed from its last cursor. Knows nothing of jobs. */

import { currentKey } from './access.js';
import { watchToken } from './api.js';
import { now } from './clock.js';
import { openSocket } from './socket.js';

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;

/** Only a connection that lasted this long sets the back-off to its beginning. */
const STEADY_MS = 10_000;

/** So long before its token expires, a connection is replaced by another. */
const RENEW_MS = 60_000;

/** Close codes 4500–4999 say that coming back would change nothing; 4500, unless it is with another token. */
const isFinal = (code) => code > 4500 && code <= 4999;

export class Stream {
  #listener;
  #abandon = null;
  #cursor = null;
  #losses = 0;
  #final = false;
  #attempt = 0;
  #reopening = 0;
  #renewing = 0;
  #steadying = 0;

  /** @param {{onOpen: () => void, onMessage: (message: object) => void, onLost: () => void}} listener */
  constructor(listener) {
    this.#listener = listener;
  }

  /** Opens a connection now, in place of whatever there is. */
  async connect() {
    if (this.#final) return;
    const attempt = this.#leave();
    let protocols;
    try {
      protocols = await this.#protocols();
    } catch {
      if (attempt === this.#attempt) this.#lost();
      return;
    }
    if (attempt !== this.#attempt) return; // somebody was faster, or wants none any more
    this.#abandon = openSocket(this.#url(), protocols, {
      onOpen: () => this.#opened(),
      onText: (text) => this.#receive(text),
      onEnd: (code) => this.#lost(code),
    });
  }

  /** Closes the connection for good, and forgets how far it was; `connect` begins anew. */
  stop() {
    this.#leave();
    this.#cursor = null;
    this.#losses = 0;
    this.#final = false;
  }

  /** @returns {number} of the attempt that may follow */
  #leave() {
    clearTimeout(this.#reopening);
    clearTimeout(this.#steadying);
    clearTimeout(this.#renewing);
    this.#abandon?.();
    this.#abandon = null;
    return ++this.#attempt;
  }

  /** A page can send no header with a WebSocket, so a token goes where its protocol is chosen. */
  async #protocols() {
    if (currentKey() === null) return [];
    const { token, expires_at: end } = await watchToken();
    const left = Date.parse(end) - now();
    this.#renewing = setTimeout(() => this.connect(), Math.max(left / 2, left - RENEW_MS));
    return ['progressd', `progressd.token.${token}`];
  }

  /** Gives up a connection that is open in name only, and tries anew. */
  reopen() {
    this.#listener.onLost();
    this.connect();
  }

  #url() {
    const url = new URL('ws/jobs', document.baseURI);
    url.protocol = url.protocol.replace('http', 'ws');
    if (this.#cursor) url.searchParams.set('since', this.#cursor);
    return url;
  }

  #opened() {
    this.#steadying = setTimeout(() => { this.#losses = 0; }, STEADY_MS);
    this.#listener.onOpen();
  }

  #receive(text) {
    const message = parse(text);
    if (!message) return;
    if (message.type === 'resync') this.#cursor = null;
    if (message.cursor) this.#cursor = message.cursor;
    this.#listener.onMessage(message);
  }

  #lost(code) {
    this.#leave();
    this.#losses += 1;
    this.#final = isFinal(code);
    if (!this.#final) this.#reopening = setTimeout(() => this.connect(), delayAfter(this.#losses));
    this.#listener.onLost();
  }
}

/** Doubles with every loss; the random half keeps a hundred pages from coming back in the same moment. */
function delayAfter(losses) {
  const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (losses - 1));
  return longest * (0.5 + Math.random() / 2);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a frame this page cannot read is one it does not need
  }
}
