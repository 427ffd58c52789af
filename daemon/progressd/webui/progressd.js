/**
 * progressd for JavaScript: watch jobs, submit files, report progress. For browsers and Node.js 20 or newer.
 *
 *   for await (const { type, data } of watch('https://box:8080', { job: id, token })) console.log(type, data);
 *
 * See docs/embedding.md. This module imports others only when they are needed.
 */

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;
const LONGEST_LOCAL_DELAY_MS = 2000; // to a daemon on this machine
const OPEN_TIMEOUT_MS = 8000;
const SETTLE_MS = 300; // some proxies accept a WebSocket and close it at once
const STEADY_MS = 10_000; // only a connection that lasted this long resets the back-off
const QUIET_MS = 30_000; // then ask whether the server is there
const STREAM_AGAIN_MS = 60_000; // after this time of polling, try a stream again
const RENEW_MS = 60_000; // before the end of a token
const MAX_QUEUED = 4096; // messages that wait for the iterator; beyond, the watch disconnects and resumes later
const MAX_KNOWN = 20_000; // jobs

const RANKS = { queued: 0, processing: 1, completed: 2, failed: 2, cancelled: 2 };
const ENDED = 3; // the message of the end was delivered too
const CODES = {
  400: 'bad_request', 401: 'unauthorized', 403: 'forbidden', 404: 'not_found', 409: 'conflict', 413: 'too_large',
  415: 'unsupported_type', 422: 'bad_option', 429: 'rate_limited', 503: 'unavailable', 507: 'storage_full',
};
const TRANSIENT = new Set([408, 429, 500, 502, 503, 504, 507]);
const TEMPORARY = new Set(['unreachable', 'lost', 'held_up']);
const FINISHED = Symbol('finished');

/** A request that the server refused, or a page that may not ask. `status` is the HTTP status, if there was one. */
export class ProgressdError extends Error {
  constructor(message, code, status, retryAfter = 0) {
    super(message);
    this.name = 'ProgressdError';
    this.code = code;
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }

  /** The error of a response. */
  static of({ host }, status, body, retryAfter) {
    const sentence = body?.message ?? body?.error ?? `${host} answered with HTTP status ${status}.`;
    const seconds = Number(body?.retry_after ?? retryAfter) || 0;
    return new ProgressdError(sentence, body?.code ?? CODES[status] ?? 'http', status, seconds);
  }

  /** Whether the same request may succeed later. */
  get transient() {
    return TEMPORARY.has(this.code) || TRANSIENT.has(this.status);
  }
}

/** Watches a job, a batch, all jobs, or the log of a job. progressd.d.ts has the options. */
export const watch = (url, options = {}) => new Watch(url, options);

/** An async iterator of messages, and an EventTarget. It connects at the first `for await`, `next()` or listener. */
export class Watch extends EventTarget {
  #base;
  #options;
  #paths;
  #cursor;
  #state = null;
  #since = Date.now();
  #attempt = null; // the AbortController of the connection
  #started = false;
  #over = false;
  #failure = null;
  #away = new AbortController(); // ends the listeners for the network and the page
  #heard = 0;
  #replaying = false;
  #ended = false; // the stream's last message was delivered
  #known = new Map(); // job → how far it was delivered
  #types = new Set();
  #queue = null;
  #keys = 0;
  #waiting = [];
  #wake = () => {};
  #drained = () => {};

  constructor(url, options) {
    super();
    this.#base = baseOf(url);
    this.#options = options;
    this.#paths = pathsOf(options);
    this.#cursor = options.since;
    const { signal } = options;
    if (signal?.aborted) this.#end(signal.reason);
    signal?.addEventListener('abort', () => this.#end(signal.reason), { signal: this.#away.signal });
  }

  /** The position of the newest message. A later watch with `since: cursor` continues there. */
  get cursor() {
    return this.#cursor;
  }

  /** `live`, `polling`, `reconnecting`, or null before the first connection. */
  get state() {
    return this.#state;
  }

  /** Calls `listener` with each message of a type; `message`: each message. Returns a function that stops this. */
  on(type, listener) {
    const call = ({ detail }) => listener(detail);
    this.addEventListener(type, call);
    return () => this.removeEventListener(type, call);
  }

  addEventListener(type, ...rest) {
    super.addEventListener(type, ...rest);
    this.#types.add(type);
    this.#start();
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** The next message. Rejects with a ProgressdError if the server refuses the watch. */
  async next() {
    this.#queue ??= new Map();
    this.#start();
    for (const [key, value] of this.#queue) {
      this.#queue.delete(key);
      if (this.#queue.size < MAX_QUEUED / 2) this.#drained();
      return { value, done: false };
    }
    if (!this.#over) return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
    const failure = this.#failure;
    this.#failure = null;
    if (failure) throw failure;
    return { value: undefined, done: true };
  }

  /** Closes the connection. `for await` calls this when its loop is left. */
  async return(value) {
    this.close();
    return { value, done: true };
  }

  /** Closes the connection. The iterator ends. */
  close() {
    this.#queue?.clear();
    this.#end();
  }

  /** Opens the connection again, for a page that knows it to be dead. */
  reconnect() {
    if (this.#state === 'live') this.#attempt?.abort();
    this.wake();
  }

  /** Ends the wait for the next attempt. */
  wake() {
    this.#wake();
  }

  #end(failure = null) {
    if (this.#over) return;
    this.#over = true;
    this.#failure = failure;
    this.#away.abort();
    this.#attempt?.abort();
    this.#wake();
    for (const { resolve, reject } of this.#waiting.splice(0)) {
      if (failure) reject(failure);
      else resolve({ value: undefined, done: true });
      if (failure) this.#failure = failure = null;
    }
  }

  #start() {
    if (this.#started || this.#over) return;
    this.#started = true;
    const { signal } = this.#away;
    globalThis.addEventListener?.('online', () => this.reconnect(), { signal });
    globalThis.addEventListener?.('offline', () => this.#probe(), { signal });
    globalThis.document?.addEventListener('visibilitychange', () => {
      if (document.hidden) return;
      if (this.#state === 'live') this.#probe();
      else this.wake();
    }, { signal });
    this.#run().then(() => this.#finish(), (error) => this.#refuse(error));
  }

  #finish() {
    this.#end();
    this.#dispatch('end');
  }

  /** An error that nobody would see becomes an unhandled rejection. */
  #refuse(error) {
    const isSeen = this.#queue !== null || this.#types.has('refused');
    this.#end(error);
    this.#dispatch('refused', error);
    if (!isSeen) throw error;
  }

  async #run() {
    let losses = 0;
    while (!this.#over) {
      const began = Date.now();
      let reason;
      try {
        if (await this.#connect() === FINISHED) return;
      } catch (error) {
        if (this.#over) return;
        if (!(error instanceof ProgressdError) || !error.transient) throw error;
        reason = error;
      }
      if (this.#over) return;
      if (this.#queue?.size > MAX_QUEUED / 2) {
        await Promise.race([new Promise((resolve) => { this.#drained = resolve; }), this.#pause()]);
      } else if (reason) {
        if (this.#state !== 'reconnecting') this.#tell('reconnecting', { reason: reason.message });
        losses = Date.now() - began > STEADY_MS ? 1 : losses + 1;
        await this.#pause(Math.max(this.#delay(losses), reason.retryAfter * 1000));
      }
    }
  }

  /** The delay doubles with every loss. Half of it is random, so that many pages do not reconnect at once. */
  #delay(losses) {
    if (globalThis.navigator?.onLine === false) return LONGEST_DELAY_MS; // `online` ends it
    const longest = isLocal(this.#base.hostname) ? LONGEST_LOCAL_DELAY_MS : LONGEST_DELAY_MS;
    return Math.min(longest, FIRST_DELAY_MS * 2 ** (losses - 1)) * (0.5 + Math.random() / 2);
  }

  /** Waits, at most `delay` ms. */
  #pause(delay) {
    if (this.#over) return undefined;
    return new Promise((resolve) => {
      const timer = delay === undefined ? 0 : setTimeout(resolve, delay);
      this.#wake = () => { clearTimeout(timer); resolve(); };
    });
  }

  /** One round: a WebSocket; if that cannot be opened, an event stream; if that is held up, polling. */
  async #connect() {
    const attempt = this.#attempt = new AbortController();
    const { signal } = attempt;
    const renewing = { timer: 0, attempt };
    try {
      if (globalThis.WebSocket && !(this.#options.log && this.#options.key)) {
        const ended = await this.#socket(await this.#socketToken(signal, renewing), signal);
        if (ended !== undefined || signal.aborted) return ended;
      }
      const token = await this.#ownToken(renewing);
      try {
        return await this.#events(token, signal);
      } catch (error) {
        if (signal.aborted) return undefined;
        const isHeldUp = error.code === 'held_up' || error.status >= 502 ||
          (error.code === 'unreachable' && await isAlive(this.#base)); // something on the way forbids streams
        if (!isHeldUp || this.#options.log || this.#options.poll === false) throw error;
      }
      return await this.#poll(token, signal);
    } catch (error) {
      if (signal.aborted && !(error instanceof ProgressdError)) return undefined; // renewed, or replaced
      throw error;
    } finally {
      clearTimeout(renewing.timer);
      attempt.abort();
    }
  }

  /** A page cannot send a header with a WebSocket, so a key is exchanged for a token. */
  async #socketToken(signal, renewing) {
    const { key, token } = this.#options;
    if (!key || token) return this.#ownToken(renewing);
    const response = await this.#fetch(this.#paths.token, { method: 'POST', signal });
    const made = (await response.json()).token;
    renewBefore(made, renewing);
    return made;
  }

  async #ownToken(renewing) {
    const { token } = this.#options;
    if (typeof token !== 'function') return token;
    let made;
    try {
      made = await token();
    } catch (error) {
      throw error instanceof ProgressdError ? error : new ProgressdError(`No token: ${error.message}`, 'unreachable');
    }
    renewBefore(made, renewing);
    return made;
  }

  #url(path, token, more = {}) {
    const { interval, types, log } = this.#options;
    const url = new URL(path, this.#base);
    const position = { [log ? 'offset' : 'since']: this.#cursor };
    const query = { interval, types: types && String(types), token, ...position, ...more };
    for (const [name, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(name, value);
    return url;
  }

  /** Requests a path with the key. Rejects with a ProgressdError. */
  async #fetch(url, options = {}) {
    try {
      return await request(this.#base, url, { key: this.#options.key, ...options });
    } catch (error) {
      if (error.code === 'unreachable' && this.#state === null && globalThis.location) {
        await (await fallback()).explain(this.#base);
      }
      throw error;
    }
  }

  /** @returns {Promise<?>} FINISHED, or undefined if the socket was never open */
  #socket(token, signal) {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return resolve();
      const url = this.#url(this.#paths.socket);
      url.protocol = url.protocol.replace('http', 'ws');
      const socket = new WebSocket(url, token ? ['progressd', `progressd.token.${token}`] : []);
      const listening = new AbortController();
      let isOpen = false;
      let timer = setTimeout(() => leave(resolve), OPEN_TIMEOUT_MS);
      const quiet = setInterval(() => {
        if (!isOpen || Date.now() - this.#heard < QUIET_MS) return;
        socket.send('{"type":"ping"}'); // ignored; the network reports a connection that the server has lost
        this.#probe();
      }, QUIET_MS / 2);
      const leave = (settle, value) => {
        clearTimeout(timer);
        clearInterval(quiet);
        listening.abort();
        socket.close();
        settle(value);
      };
      const settled = () => {
        if (isOpen) return;
        isOpen = true;
        clearTimeout(timer);
        this.#opened('websocket');
      };
      const on = (type, listener) => socket.addEventListener(type, listener, { signal: listening.signal });
      on('open', () => {
        clearTimeout(timer);
        timer = setTimeout(settled, SETTLE_MS);
      });
      on('message', ({ data }) => {
        settled();
        this.#receive(data);
      });
      on('close', ({ code, reason }) => {
        if (code === 1000 && reason.endsWith('finished')) leave(resolve, FINISHED);
        else if (isOpen || code >= 4000) leave(reject, this.#closed(code, reason));
        else leave(resolve);
      });
      signal.addEventListener('abort', () => leave(isOpen ? reject : resolve), { signal: listening.signal });
    });
  }

  #closed(code, reason) {
    const { key, token } = this.#options;
    if (code === 4500 && (typeof token === 'function' || (key && !token))) {
      return new ProgressdError('The token has expired.', 'lost');
    }
    if (code === 4500) return new ProgressdError('The token has expired or was revoked.', 'credentials_expired', 401);
    if (code === 4501) return new ProgressdError('The job was deleted.', 'job_deleted', 404);
    if ((code > 4501 && code <= 4999) || [1002, 1007, 1008, 1009].includes(code)) {
      return new ProgressdError(`The server closed the connection: ${reason || code}.`, 'closed', undefined);
    }
    return new ProgressdError(reason || 'The connection was lost.', 'lost');
  }

  async #events(token, signal) {
    const { readEvents } = await fallback();
    const isOver = await readEvents({
      signal,
      open: (limit) => this.#fetch(this.#url(this.#paths.events, token), { signal: limit }),
      opened: () => this.#opened('sse'),
      receive: (text) => this.#receive(text),
      isLive: () => this.#state === 'live',
    });
    if (isOver || this.#ended) return FINISHED;
    throw new ProgressdError('The connection was lost.', 'lost');
  }

  async #poll(token, signal) {
    const { Poll } = await fallback();
    const none = { since: undefined, interval: undefined, types: undefined };
    const poll = new Poll({
      signal, options: this.#options, paths: this.#paths, ranks: RANKS, known: this.#known, ended: ENDED,
      get: async (path, more) => (await this.#fetch(this.#url(path, token, { ...none, ...more }), { signal })).json(),
      deliver: (message) => this.#deliver(message),
      told: () => this.#tell('polling', { transport: 'polling' }),
      isOver: () => this.#ended,
      pause: (delay) => this.#pause(delay),
    });
    await poll.run(Date.now() + STREAM_AGAIN_MS);
    return this.#ended ? FINISHED : undefined;
  }

  #opened(transport) {
    this.#replaying = true;
    this.#heard = Date.now();
    this.#tell('live', { transport });
  }

  #receive(text) {
    if (this.#attempt.signal.aborted) return;
    this.#heard = Date.now();
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return; // not a message
    }
    if (message.type === 'resync') {
      this.#cursor = undefined;
      this.#known.clear();
    }
    if (message.type === 'hello') this.#replaying = false;
    if (this.#options.log) this.#cursor = message.data?.offset ?? this.#cursor;
    else this.#cursor = message.cursor ?? this.#cursor;
    if (!this.#isRepeated(message)) this.#deliver(message);
  }

  /** With `interval`, or after polling, a cursor may be older than the newest message: see docs/protocol.md. */
  #isRepeated({ type, job_id, data }) {
    const known = this.#known.get(job_id);
    if (!this.#replaying || known === undefined) return false;
    if (type === 'status_change') return RANKS[data.new_status] > 0 && RANKS[data.new_status] <= known;
    return (type === 'completed' || type === 'error') ? known === ENDED : type === 'job_created';
  }

  #deliver(message) {
    const { type, job_id: id, data } = message;
    const isEnd = type === 'completed' || type === 'error';
    if (type === 'job_deleted') this.#known.delete(id);
    else if (type === 'job_created') this.#know(id, this.#known.get(id) ?? 0);
    else if (type === 'status_change') this.#know(id, RANKS[data.new_status]);
    else if (isEnd) this.#know(id, ENDED);
    this.#ended ||= this.#options.job ? isEnd || data?.new_status === 'cancelled' : type === 'batch_completed';
    this.#emit(message);
  }

  #know(id, rank) {
    this.#known.set(id, rank);
    if (this.#known.size > MAX_KNOWN) this.#known.delete(this.#known.keys().next().value);
  }

  #tell(state, more) {
    if (state === this.#state) return;
    this.#state = state;
    this.#since = Date.now();
    this.#emit({ type: 'connection', data: { state, since: new Date(this.#since).toISOString(), ...more } });
  }

  #emit(message) {
    if (this.#over) return;
    this.#dispatch('message', message);
    this.#dispatch(message.type, message);
    if (this.#queue === null || this.#over) return;
    const waiting = this.#waiting.shift();
    if (waiting) {
      waiting.resolve({ value: message, done: false });
      return;
    }
    // A newer progress replaces the older one, as in the server.
    const key = message.type === 'progress' ? message.job_id : ++this.#keys;
    this.#queue.delete(key);
    this.#queue.set(key, message);
    if (this.#queue.size >= MAX_QUEUED) this.#attempt?.abort();
  }

  #dispatch(type, detail) {
    if (this.#types.has(type)) this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Replaces the connection if the server does not answer. */
  async #probe() {
    const attempt = this.#attempt;
    if (await isAlive(this.#base) || attempt !== this.#attempt || attempt.signal.aborted) return;
    this.#tell('reconnecting', { reason: 'The server does not answer.' });
    attempt.abort();
  }
}

/** Submits a file, or several as a batch. A lost request is repeated; nothing is created twice. */
export const submit = async (url, files, options) =>
  (await import('./progressd-report.js')).submitFiles(url, files, options);

/** Begins to report on a job of this program. Events are sent in the background, many in one request. */
export const report = async (url, options) => new (await import('./progressd-report.js')).Report(url, options);

/** Returns the state of a job after a message. The state is as in `GET /api/jobs/ID`; it is never changed in place. */
export function applied(job, { type, data, time }) {
  const isFinished = RANKS[job.status] >= 2;
  if (type === 'progress' && !isFinished) return { ...job, status: 'processing', progress: { ...data, time } };
  if (type === 'status_change' && !isFinished) {
    const { new_status: status } = data;
    if (status === 'queued') return { ...job, status, progress: undefined, started_at: undefined };
    return { ...job, status, [status === 'processing' ? 'started_at' : 'completed_at']: time };
  }
  if (type === 'completed') return { ...job, ...data, status: 'completed', output_path: data.download_url ?? data.output_path };
  if (type === 'error') return { ...job, status: 'failed', error: data.message };
  return job;
}

/** Requests JSON from the daemon, with a key or a token. Rejects with a ProgressdError. */
export async function getJson(url, path, { key, token, ...options } = {}) {
  const target = new URL(path, baseOf(url));
  if (token) target.searchParams.set('token', token);
  return (await request(baseOf(url), target, { key: token ? undefined : key, ...options })).json();
}

export async function request(base, path, { key, headers, ...options }) {
  let response;
  try {
    const all = { ...headers, ...(key && { Authorization: `Bearer ${key}` }) };
    response = await fetch(new URL(path, base), { cache: 'no-cache', ...options, headers: all });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ProgressdError(`No connection to ${base.host}.`, 'unreachable');
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw ProgressdError.of(base, response.status, body, response.headers.get('Retry-After'));
}

const fallback = () => import('./progressd-fallback.js').catch(() => {
  throw new ProgressdError('The server cannot be reached.', 'unreachable'); // it has this module too
});

const probes = new Map();

/** Whether the server answers. Many watches ask once. */
function isAlive(base) {
  const { href } = base;
  if (!probes.has(href)) {
    const signal = AbortSignal.timeout(OPEN_TIMEOUT_MS);
    const asked = fetch(new URL('api/health/live', base), { cache: 'no-store', signal }).then(() => true, () => false);
    probes.set(href, asked.finally(() => setTimeout(() => probes.delete(href), 1000)));
  }
  return probes.get(href);
}

/** Ends an attempt before its token expires. The next one gets a new token. */
function renewBefore(token, renewing) {
  try {
    const { iat, exp } = JSON.parse(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')));
    const whole = (exp - iat) * 1000;
    const left = exp * 1000 - Date.now();
    const safe = left > 0 && left < whole ? left : whole; // the clocks may differ
    renewing.timer = setTimeout(() => renewing.attempt.abort(), Math.max(safe / 2, safe - RENEW_MS));
  } catch {
    // a token of another form: the server closes the connection when it expires
  }
}

export function baseOf(url) {
  const base = new URL(url, globalThis.document?.baseURI);
  base.search = base.hash = '';
  base.pathname = base.pathname.replace(/\/?$/, '/');
  return base;
}

export const isLocal = (host) => /^(localhost|.*\.localhost|127\..*|\[::1\])$/.test(host);

function pathsOf({ job, batch, log }) {
  const id = encodeURIComponent(job ?? batch ?? log ?? '');
  if (!id) return { socket: 'ws/jobs', events: 'api/events', token: 'api/token' };
  const of = `${batch ? 'batch' : 'jobs'}/${id}`;
  const part = log ? '/log' : '';
  return { socket: `ws/${of}${part}`, events: `api/${of}${part}/events`, token: `api/${of}/token`, state: `api/${of}` };
}

/** The elements are loaded when the page has one, so that a page needs no more than this module and a tag. */
const ELEMENTS = {
  'progressd-job': () => import('./progressd-job.js'),
  'progressd-batch': () => import('./progressd-batch.js'),
  'progressd-jobs': () => import('./progressd-jobs.js'),
  'progressd-log': () => import('./progressd-log.js'),
};

function loadElements() {
  const missing = new Set(Object.keys(ELEMENTS));
  const look = () => {
    for (const tag of missing) {
      if (!document.getElementsByTagName(tag).length) continue;
      missing.delete(tag);
      if (!customElements.get(tag)) ELEMENTS[tag]().catch((error) => console.error(`<${tag}> cannot be loaded:`, error));
    }
    if (!missing.size) observer.disconnect();
  };
  const observer = new MutationObserver(look);
  observer.observe(document, { childList: true, subtree: true });
  look();
}

if (globalThis.document && globalThis.customElements) loadElements();
