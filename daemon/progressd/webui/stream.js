/** The stream of `/ws/jobs`: reconnected with back-off, resumed from its last cursor. Independent of jobs. */

import { currentKey } from './access.js';
import { watchToken } from './api.js';
import { now } from './clock.js';
import { openSocket } from './socket.js';

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;

/** Only a connection that lasted this long resets the back-off. */
const STEADY_MS = 10_000;

/** A connection is replaced this long before its token expires. */
const RENEW_MS = 60_000;

/** At most one progress message of a job arrives in this time. */
const INTERVAL_S = 0.5;

/** Close codes 4500–4999 mean: do not reconnect. After 4500, reconnect only with another token. */
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

  /** Opens a connection now, and replaces the current one. */
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
    if (attempt !== this.#attempt) return; // replaced by a newer attempt, or stopped
    this.#abandon = openSocket(this.#url(), protocols, {
      onOpen: () => this.#opened(),
      onText: (text) => this.#receive(text),
      onEnd: (code) => this.#lost(code),
    });
  }

  /** @param {string} [cursor] the position from which the next connection starts */
  resumeFrom(cursor) {
    this.#cursor ??= cursor ?? null;
  }

  /** Closes the connection permanently and discards the cursor. `connect` starts from the beginning. */
  stop() {
    this.#leave();
    this.#cursor = null;
    this.#losses = 0;
    this.#final = false;
  }

  /** @returns {number} the number of the next attempt */
  #leave() {
    clearTimeout(this.#reopening);
    clearTimeout(this.#steadying);
    clearTimeout(this.#renewing);
    this.#abandon?.();
    this.#abandon = null;
    return ++this.#attempt;
  }

  /** A page cannot send a header with a WebSocket, so it sends the token as a subprotocol. */
  async #protocols() {
    if (currentKey() === null) return [];
    const { token, expires_at: end } = await watchToken();
    const left = Date.parse(end) - now();
    this.#renewing = setTimeout(() => this.connect(), Math.max(left / 2, left - RENEW_MS));
    return ['progressd', `progressd.token.${token}`];
  }

  /** Replaces a connection that is open but dead. */
  reopen() {
    this.#listener.onLost();
    this.connect();
  }

  #url() {
    const url = new URL('ws/jobs', document.baseURI);
    url.protocol = url.protocol.replace('http', 'ws');
    url.searchParams.set('interval', INTERVAL_S);
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

/** The delay doubles with every loss. Half of it is random, so that many pages do not reconnect at once. */
function delayAfter(losses) {
  const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (losses - 1));
  return longest * (0.5 + Math.random() / 2);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // the page ignores frames that it cannot parse
  }
}
