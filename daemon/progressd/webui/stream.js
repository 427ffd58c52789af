/** The stream of all jobs for the feed, which polls by itself. The connection itself is in progressd.js. */

import { currentKey, refused } from './access.js';
import { watch } from './progressd.js';

/** At most one progress message of a job arrives in this time, in seconds. */
const INTERVAL = 0.5;

export class Stream {
  #listener;
  #watch = null;
  #cursor;

  /** @param {{onOpen: () => void, onMessage: (message: object) => void, onLost: () => void}} listener */
  constructor(listener) {
    this.#listener = listener;
  }

  /** Connects, or tries again now. */
  connect() {
    if (this.#watch) this.#watch.wake();
    else this.#open();
  }

  /** Replaces a connection that is open but dead. */
  reopen() {
    this.#listener.onLost();
    this.#watch?.reconnect();
  }

  /** @param {string} [cursor] the position from which the first connection starts */
  resumeFrom(cursor) {
    this.#cursor ??= cursor;
  }

  /** Closes the connection permanently and discards the cursor. `connect` starts from the beginning. */
  stop() {
    this.#watch?.close();
    this.#watch = null;
    this.#cursor = undefined;
  }

  #open() {
    const key = currentKey();
    const options = { key: key ?? undefined, since: this.#cursor, interval: INTERVAL, poll: false };
    const watching = this.#watch = watch(document.baseURI, options);
    watching.on('message', (message) => {
      const { type, data } = message;
      if (type !== 'connection') this.#listener.onMessage(message);
      else if (data.state === 'live') this.#listener.onOpen();
      else this.#listener.onLost();
    });
    watching.on('refused', (error) => {
      this.#cursor = watching.cursor;
      this.#watch = null;
      this.#listener.onLost();
      if (error.status === 401) refused(key, error.message);
    });
  }
}
