/** Keeps the jobs up to date: pages of lists first, then the stream if it is connected, otherwise polling. */

import { getJob, listJobs, Refusal } from './api.js';
import { filtersOf, finishedOf, isFiltered } from './query.js';
import { Stream } from './stream.js';
import { sentence, t } from './text.js';

const POLL_MS = 1000;
const LONGEST_POLL_MS = 15_000;

/** A dead stream shows no error. A request does. */
const LIVE_CHECK_MS = 60_000;

/** The time for the stream to reconnect before the page polls. */
const PATIENCE_MS = 1500;

/** The first page is small, for the first rows. */
const FIRST_PAGE = 100;
const PAGE = 1000;

/** The unfinished jobs in memory. The page says when there are more. */
export const MAX_UNFINISHED = 20_000;

/** Jobs requested one by one because of a message; for more, the next check of the list must do. */
const MAX_WANTED = 50;

/** Pages in one poll. */
const MAX_POLLED = 5;

const UNFINISHED = { status: 'queued,processing' };

/** @typedef {'live' | 'polling' | 'reconnecting'} Connection */

/** The pages of one list, in order. */
class Pages {
  after = undefined;
  done = false;
  busy = false;
  loaded = 0;
  total = 0;

  /** @param {URLSearchParams} params */
  constructor(params) {
    this.params = params;
  }
}

export class Feed {
  #jobs;
  #listener;
  #stream;
  #query = null;
  #unfinished = new Pages(new URLSearchParams(UNFINISHED));
  #rest = null; // pages of the finished jobs that the query shows
  #found = null; // pages of unfinished jobs with its words and filters, until all unfinished jobs are here
  #connection = 'reconnecting';
  #live = false;
  #liveUntil = performance.now();
  #heardAt = Date.now();
  #running = false;
  #timer = 0;
  #failures = 0;
  #asking = 0;
  #log = []; // the messages since the oldest request that has no answer
  #wanted = new Set();
  #newest = 0; // the newest change that polling has seen
  #said = null; // the server's current notice about itself

  /**
   * @param {import('./jobs.js').Jobs} jobs
   * @param {object} listener
   * @param {(connection: Connection, heardAt: number) => void} listener.onConnection
   * @param {(sentence: ?string) => void} listener.onNotice receives the server's notice about itself, and null when it
   *   no longer applies
   * @param {(counts: Record<string, number>, isExact: boolean) => void} listener.onCounts
   * @param {(message: object) => void} listener.onUnknown receives a message about a job that the page does not have
   * @param {() => void} listener.onLoaded
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

  /** @returns {boolean} whether jobs of the query are still being loaded without being asked for */
  get loading() {
    return !this.#isWhole || !this.isKnown;
  }

  /** The unfinished jobs that the page has not loaded yet. */
  get missing() {
    const { done, total, loaded } = this.#unfinished;
    return done ? 0 : Math.max(0, Math.min(total, MAX_UNFINISHED) - loaded);
  }

  /** Whether there are more unfinished jobs than the page keeps. */
  get isCut() {
    return this.#unfinished.loaded >= MAX_UNFINISHED && !this.#unfinished.done;
  }

  /** Whether the first unfinished jobs are here, and with them the number of all unfinished jobs. */
  get isCounted() {
    return this.#unfinished.done || this.#unfinished.loaded > 0;
  }

  /** Whether the first unfinished and the first finished jobs are here. */
  get isKnown() {
    return this.isCounted && (!this.#rest || this.#rest.done || this.#rest.loaded > 0);
  }

  /** The finished jobs that the page has loaded in pages. */
  get loadedFinished() {
    return this.#rest?.loaded ?? 0;
  }

  get #isWhole() {
    return this.#unfinished.done || this.#unfinished.loaded >= MAX_UNFINISHED;
  }

  async start() {
    if (this.#running) return;
    this.#running = true;
    this.#liveUntil = performance.now();
    this.#tell('reconnecting');
    try {
      // From the newest change on, the stream has everything, and the pages have everything before.
      const { jobs } = await listJobs(new URLSearchParams({ sort: '-updated', limit: 1 }));
      if (this.#running) this.#stream.resumeFrom(jobs[0]?.cursor);
    } catch {
      // The stream then starts with the state of all unfinished jobs.
    }
    if (this.#running) this.#stream.connect();
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
    this.#restart(); // the next key may see other jobs
  }

  /** @param {import('./query.js').Query} query what the list shows from now on */
  show(query) {
    this.#query = query;
    this.#choosePages();
    if (this.#running) this.#load().catch((error) => this.#unanswered(error));
  }

  #choosePages() {
    const query = this.#query;
    const pagesOf = (values) => {
      const params = filtersOf(query);
      for (const [name, value] of Object.entries(values)) params.set(name, value);
      return new Pages(params);
    };
    const finished = finishedOf(query);
    if (finished) this.#rest = pagesOf({ ...finished, sort: query.sort });
    else this.#rest = null;
    this.#found = isFiltered(query) && !this.#unfinished.done ? pagesOf(UNFINISHED) : null;
  }

  /** Starts all lists again. Responses to requests for the old pages are ignored. */
  #restart() {
    this.#unfinished = new Pages(new URLSearchParams(UNFINISHED));
    this.#choosePages();
  }

  /** Loads the next finished jobs, because the end of the list is in sight. */
  more() {
    const rest = this.#rest;
    if (this.#running && rest && !rest.done && !rest.busy) this.#nextJobs(rest).catch(() => {});
  }

  /** The page has dropped finished jobs. */
  restartPages() {
    if (this.#rest) this.#rest = new Pages(this.#rest.params);
  }

  /** Requests one job, after those requested before. */
  async want(id) {
    if (this.#wanted.has(id) || this.#wanted.size >= MAX_WANTED) return;
    this.#wanted.add(id);
    if (this.#wanted.size > 1) return;
    for (const next of this.#wanted) {
      await this.#ask(next);
      this.#wanted.delete(next);
    }
  }

  async #ask(id) {
    const mark = this.#begin();
    try {
      this.#put([await getJob(id)], mark);
    } catch (error) {
      if (error.status === 404) this.#jobs.remove(id, true);
      if (error.retryAfter) await new Promise((resume) => setTimeout(resume, error.retryAfter * 1000));
    } finally {
      this.#end();
    }
  }

  #opened() {
    this.#live = true;
    this.#heardAt = Date.now();
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
    this.#heardAt = Date.now();
    if (message.type === 'server_shutdown') {
      this.#hear(farewell(message.data));
    } else if (message.type === 'server_status') {
      const { error } = message.data;
      this.#hear(error ? t('The server cannot save changes at the moment: {error}.', { error: sentence(error) }) : null);
    } else if (message.type === 'resync') {
      this.#log.length = 0;
      this.#jobs.clear(); // a daemon restored from a backup may have other jobs, and finished jobs may run again
      this.#restart();
      this.#sync();
    } else if (message.job_id) {
      if (this.#asking) this.#log.push(message);
      if (this.#jobs.apply(message)) return;
      this.#listener.onUnknown(message);
      if (this.#unfinished.done && !this.#asking) this.want(message.job_id);
    }
  }

  #hear(notice) {
    this.#said = notice;
    this.#listener.onNotice(notice);
  }

  #tell(connection) {
    if (connection === this.#connection) return;
    this.#connection = connection;
    this.#listener.onConnection(connection, this.#heardAt);
  }

  /** Loads what is missing, and schedules the next check: soon when polling, later when live, with back-off on errors. */
  async #sync() {
    clearTimeout(this.#timer);
    try {
      await this.#load();
      if (!this.#live) await this.#poll();
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
    const silent = Date.now() - this.#heardAt > LIVE_CHECK_MS / 2;
    if (this.#live && silent && !refused) this.#stream.reopen();
    if (!this.#live) this.#tell('reconnecting');
    const delay = Math.min(LONGEST_POLL_MS, POLL_MS * 2 ** this.#failures) * (0.5 + Math.random() / 2);
    this.#syncIn(Math.max(delay, (error.retryAfter ?? 0) * 1000));
  }

  #syncIn(delay) {
    clearTimeout(this.#timer);
    if (this.#running) this.#timer = setTimeout(() => this.#sync(), delay);
  }

  /** Loads the numbers, the first finished jobs of the query, and page by page all unfinished jobs. */
  async #load() {
    const isRestMissing = this.#rest && !this.#rest.loaded && !this.#rest.busy;
    const rest = isRestMissing ? this.#nextJobs(this.#rest) : null;
    rest?.catch(() => {}); // it is awaited last, and an earlier error counts
    const first = [this.#count()];
    if (!this.#unfinished.loaded && !this.#unfinished.busy) first.push(this.#next(this.#unfinished, FIRST_PAGE));
    await Promise.all(first);
    const found = this.#found;
    while (this.#isWanted(found) && !found.done && !found.busy && found.loaded < MAX_UNFINISHED) await this.#next(found, PAGE);
    while (this.#running && !this.#isWhole && !this.#unfinished.busy) await this.#next(this.#unfinished, PAGE);
    await rest;
  }

  async #count() {
    const params = filtersOf(this.#query);
    params.set('counts', 'true');
    params.set('limit', '1');
    const query = this.#query;
    const { counts, exact = true } = await listJobs(params);
    if (!this.#running) return;
    this.#heardAt = Date.now();
    if (query === this.#query) this.#listener.onCounts(counts, exact);
  }

  #isWanted(pages) {
    return this.#running && pages !== null && [this.#unfinished, this.#rest, this.#found].includes(pages);
  }

  /** Loads pages until one has jobs: a page of a search that took too long may be empty, and not be the last. */
  async #nextJobs(pages) {
    const before = pages.loaded;
    do await this.#next(pages, FIRST_PAGE);
    while (this.#isWanted(pages) && !pages.done && !pages.busy && pages.loaded === before);
  }

  /** Loads one page. Messages that arrive meanwhile are applied to its jobs again: an older list must not undo them. */
  async #next(pages, limit) {
    pages.busy = true;
    const mark = this.#begin();
    const params = new URLSearchParams(pages.params);
    params.set('limit', limit);
    if (pages.after !== undefined) params.set('after', pages.after);
    try {
      const { jobs, next, total } = await listJobs(params);
      if (!this.#isWanted(pages)) return;
      this.#heardAt = Date.now();
      Object.assign(pages, { after: next, done: !next, total, loaded: pages.loaded + jobs.length });
      this.#put(jobs, mark);
      this.#listener.onLoaded();
    } finally {
      pages.busy = false;
      this.#end();
    }
  }

  /** Loads the newest changes, back to those that the last poll has seen. */
  async #poll() {
    const seen = this.#newest;
    const params = new URLSearchParams({ sort: '-updated', limit: FIRST_PAGE });
    for (let page = 0; page < MAX_POLLED && this.#running; page += 1) {
      const mark = this.#begin();
      try {
        const { jobs, next } = await listJobs(params);
        this.#heardAt = Date.now();
        this.#put(jobs, mark);
        const changes = jobs.map(({ id }) => this.#jobs.get(id)?.changed ?? 0);
        this.#newest = Math.max(this.#newest, ...changes);
        if (!next || !seen || Math.min(...changes) <= seen) return;
        params.set('after', next);
      } finally {
        this.#end();
      }
    }
  }

  #begin() {
    this.#asking += 1;
    return this.#log.length;
  }

  #end() {
    this.#asking -= 1;
    if (this.#asking) return;
    const unknown = this.#unfinished.done ? this.#log.filter(({ type, job_id: id }) => type !== 'job_deleted' && !this.#jobs.get(id)) : [];
    this.#log.length = 0;
    for (const { job_id: id } of unknown) this.want(id); // a job may end between two lists, and be in neither
  }

  #put(jobs, mark) {
    if (!this.#running) return;
    for (const job of jobs) this.#jobs.put(job);
    const ids = new Set(jobs.map(({ id }) => id));
    for (const message of this.#log.slice(mark)) if (ids.has(message.job_id)) this.#jobs.apply(message);
  }
}

function farewell({ countdown_secs: n } = {}) {
  return n
    ? t('The server stops within {n} s. This page reconnects by itself when the server is back.', { n })
    : t('The server stops now. This page reconnects by itself when the server is back.');
}
