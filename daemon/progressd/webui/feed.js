/** Keeps the jobs up to date: by the stream if it is connected, otherwise by polling the list. */

import { getJob, listJobs, Refusal } from './api.js';
import { LIST_LIMIT } from './jobs.js';
import { Stream } from './stream.js';

const POLL_MS = 1000;
const LONGEST_POLL_MS = 15_000;

/** A dead stream shows no error. A request for the list does, and it restores missed changes. */
const LIVE_CHECK_MS = 60_000;

/** The time for the stream to reconnect before the page polls. */
const PATIENCE_MS = 1500;

/** @typedef {'live' | 'polling' | 'reconnecting'} Connection */

export class Feed {
  #jobs;
  #listener;
  #stream;
  #connection = 'reconnecting';
  #live = false;
  #liveUntil = performance.now();
  #heardAt = 0;
  #running = false;
  #timer = 0;
  #failures = 0;
  #loading = 0;
  #held = [];
  #wanted = new Set();
  #asking = null;
  #said = null; // the server's current notice about itself

  /**
   * @param {import('./jobs.js').Jobs} jobs
   * @param {{onConnection: (connection: Connection) => void, onNotice: (sentence: ?string) => void}} listener
   *   `onNotice` receives the server's notice about itself, and null when it no longer applies
   */
  constructor(jobs, listener) {
    this.#jobs = jobs;
    this.#listener = listener;
    this.#stream = new Stream({
      onOpen: () => this.#opened(),
      onMessage: (message) => this.#receive(message),
      onLost: () => this.#lost(),
    });
    // A connection from before the network loss is dead, whatever its state.
    window.addEventListener('online', () => {
      if (!this.#running) return;
      this.#stream.reopen();
      this.#sync();
    });
    document.addEventListener('visibilitychange', () => document.hidden || this.#lookedAt());
  }

  start() {
    if (this.#running) return;
    this.#running = true;
    this.#liveUntil = performance.now();
    this.#tell('reconnecting');
    this.#stream.connect();
    this.#sync();
  }

  /** Stops all requests, and ignores pending responses. */
  stop() {
    this.#running = false;
    this.#live = false;
    clearTimeout(this.#timer);
    this.#stream.stop();
    this.#wanted.clear();
    this.#hear(null);
  }

  /** Requests the list now, because it has changed. */
  refresh() {
    if (this.#running) this.#sync();
  }

  /** Requests one job, after those requested before. Its response includes earlier messages of the stream about it. */
  async want(id) {
    if (this.#wanted.has(id)) return;
    this.#wanted.add(id);
    if (this.#wanted.size > 1) return;
    for (const next of this.#wanted) {
      await this.#ask(next);
      this.#wanted.delete(next);
    }
  }

  async #ask(id) {
    this.#asking = { id, messages: [] };
    try {
      const job = await getJob(id);
      if (this.#running) this.#jobs.put(job);
    } catch (error) {
      if (error.status === 404) this.#jobs.remove(id);
      if (error.retryAfter) await new Promise((resume) => setTimeout(resume, error.retryAfter * 1000));
    }
    const { messages } = this.#asking;
    this.#asking = null;
    for (const message of messages) this.#jobs.apply(message);
  }

  #opened() {
    this.#live = true;
    this.#heardAt = performance.now();
    this.#hear(null);
    this.#tell('live');
    this.#sync();
  }

  #lost() {
    if (!this.#live) return;
    this.#live = false;
    this.#said = null; // the shown notice stays until the server responds again
    this.#liveUntil = performance.now();
    this.#tell('reconnecting');
    this.#syncIn(PATIENCE_MS);
  }

  /** The user looks at the page again: do not wait for the next attempt. */
  #lookedAt() {
    if (!this.#running) return;
    if (!this.#live) this.#stream.connect();
    this.#sync();
  }

  #receive(message) {
    this.#heardAt = performance.now();
    if (message.type === 'server_shutdown') {
      this.#hear(farewell(message.data));
    } else if (message.type === 'server_status') {
      this.#hear(message.data.error ? `The server cannot save changes at the moment: ${message.data.error}.` : null);
    } else if (message.type === 'resync') {
      this.#held.length = 0;
      this.#jobs.clear(); // a daemon restored from a backup may have other jobs, and finished jobs may run again
      this.#sync();
    } else if (this.#loading) {
      this.#held.push(message);
    } else {
      this.#apply(message);
    }
  }

  #hear(sentence) {
    this.#said = sentence;
    this.#listener.onNotice(sentence);
  }

  #apply(message) {
    const { job_id: id } = message;
    if (!id) return;
    if (this.#asking?.id === id) this.#asking.messages.push(message);
    else if (!this.#jobs.apply(message)) this.want(id);
  }

  #tell(connection) {
    if (connection === this.#connection) return;
    this.#connection = connection;
    this.#listener.onConnection(connection);
  }

  /** Loads the list, and schedules the next load: soon when polling, later when live, with back-off on errors. */
  async #sync() {
    clearTimeout(this.#timer);
    try {
      await this.#load();
      this.#answered();
    } catch (error) {
      this.#unanswered(error);
    }
  }

  #answered() {
    if (!this.#running) return;
    if (this.#failures) {
      this.#failures = 0;
      this.#listener.onNotice(this.#said);
      if (!this.#live) this.#stream.connect();
    }
    const waiting = performance.now() - this.#liveUntil;
    if (!this.#live && waiting > PATIENCE_MS) this.#tell('polling');
    this.#syncIn(this.#live ? LIVE_CHECK_MS : POLL_MS);
  }

  #unanswered(error) {
    if (!this.#running) return;
    this.#failures += 1;
    const refused = error instanceof Refusal;
    if (refused) this.#listener.onNotice(error.message);
    const silent = performance.now() - this.#heardAt > LIVE_CHECK_MS / 2;
    if (this.#live && silent && !refused) this.#stream.reopen();
    if (!this.#live) this.#tell('reconnecting');
    const delay = Math.min(LONGEST_POLL_MS, POLL_MS * 2 ** this.#failures) * (0.5 + Math.random() / 2);
    this.#syncIn(Math.max(delay, (error.retryAfter ?? 0) * 1000));
  }

  #syncIn(delay) {
    clearTimeout(this.#timer);
    if (this.#running) this.#timer = setTimeout(() => this.#sync(), delay);
  }

  /** Loads the list. Messages that arrive during the request wait: an older list must not undo them. */
  async #load() {
    this.#loading += 1;
    try {
      const list = await listJobs(LIST_LIMIT);
      if (!this.#running) return;
      for (const id of this.#jobs.replaceAll(list)) this.want(id);
    } finally {
      this.#loading -= 1;
      if (!this.#loading) for (const message of this.#held.splice(0)) this.#apply(message);
    }
  }
}

function farewell({ countdown_secs: seconds } = {}) {
  const when = seconds ? `within ${seconds} s` : 'now';
  return `The server stops ${when}. This page reconnects by itself when the server is back.`;
}
