/** The stream of `/ws/jobs`: reopened with back-off, resumed from its last cursor. Knows nothing of jobs. */

import { openSocket } from './socket.js';

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;

/** Only a connection that lasted this long sets the back-off to its beginning. */
const STEADY_MS = 10_000;

/** Close codes 4500–4999 say that coming back would change nothing. */
const isFinal = (code) => code >= 4500 && code <= 4999;

export class Stream {
  #listener;
  #abandon = null;
  #cursor = null;
  #losses = 0;
  #final = false;
  #reopening = 0;
  #steadying = 0;

  /** @param {{onOpen: () => void, onMessage: (message: object) => void, onLost: () => void}} listener */
  constructor(listener) {
    this.#listener = listener;
  }

  /** Opens a connection now, in place of whatever there is. */
  connect() {
    if (this.#final) return;
    clearTimeout(this.#reopening);
    clearTimeout(this.#steadying);
    this.#abandon?.();
    this.#abandon = openSocket(this.#url(), {
      onOpen: () => this.#opened(),
      onText: (text) => this.#receive(text),
      onEnd: (code) => this.#lost(code),
    });
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
    clearTimeout(this.#steadying);
    this.#abandon = null;
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
