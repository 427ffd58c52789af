/** For progressd.js where no WebSocket can be opened: events, polling, or why not. It is loaded only then. */

import { isLocal, ProgressdError } from './progressd.js';

const OPEN_TIMEOUT_MS = 8000;
const SILENT_MS = 75_000; // an event stream sends something every 30 s
const POLL_MS = 2000;
const MAX_JOBS = 200;

/**
 * Reads server-sent events with fetch: an EventSource can send no key and does not say why it fails.
 * @param {object} watch what this needs from a watch
 * @returns {Promise<boolean>} whether the server has no more to send; otherwise the connection was lost
 */
export async function readEvents({ signal, open, opened, receive, isLive }) {
  const watchdog = timeLimit(signal);
  try {
    watchdog.set(OPEN_TIMEOUT_MS);
    const response = await open(watchdog.signal);
    if (response.status === 204) return true;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return false;
      if (text === undefined) opened();
      watchdog.set(SILENT_MS);
      const events = ((text ?? '') + value).split('\n\n');
      text = events.pop();
      for (const event of events) {
        const line = event.split('\n').find((each) => each.startsWith('data: '));
        if (line && !signal.aborted) receive(line.slice(6));
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof ProgressdError) throw error;
    if (watchdog.expired && !isLive()) throw new ProgressdError('No event arrived.', 'held_up');
    return false;
  } finally {
    watchdog.clear();
  }
}

/** A signal that ends with another, or after a time that can be set again. */
function timeLimit(outer) {
  const controller = new AbortController();
  const limit = {
    signal: controller.signal,
    expired: false,
    set(delay) {
      clearTimeout(limit.timer);
      limit.timer = setTimeout(() => { limit.expired = true; controller.abort(); }, delay);
    },
    clear() {
      clearTimeout(limit.timer);
      outer.removeEventListener('abort', abort);
      controller.abort();
    },
  };
  const abort = () => controller.abort(outer.reason);
  outer.addEventListener('abort', abort);
  if (outer.aborted) abort();
  return limit;
}

/** Watches by comparing responses. Delivers what a stream would have sent. Returns when `until` has passed. */
export class Poll {
  #watch;
  #progress = new Map(); // job → the newest progress that was delivered

  /** @param {object} watch what this needs from a watch */
  constructor(watch) {
    this.#watch = watch;
  }

  async run(until) {
    const { signal, told, pause, isOver } = this.#watch;
    while (Date.now() < until && !signal.aborted) {
      await this.#ask();
      if (signal.aborted) return;
      told();
      if (isOver()) return;
      await pause(POLL_MS);
    }
  }

  async #ask() {
    const { get, paths, options } = this.#watch;
    if (options.job) {
      this.#compare(await get(paths.state));
      return;
    }
    const batch = options.batch && await get(paths.state);
    const { jobs } = await get(batch ? `${paths.state}/jobs` : 'api/jobs', batch ? {} : { limit: MAX_JOBS });
    for (const job of jobs.reverse()) this.#compare(job);
    if (batch) this.#compareBatch(batch);
  }

  #compare(job) {
    const { options, ranks, known, ended, deliver } = this.#watch;
    const id = job.id ?? job.job_id;
    const before = known.get(id);
    const send = (type, data, time) => deliver({ type, job_id: id, ...(job.batch_id && { batch_id: job.batch_id }), data, time });
    const { status, progress } = job;
    const rank = ranks[status];
    if (before === undefined && !options.job && !options.batch) send('job_created', job);
    if ((before ?? 0) < rank) {
      const time = rank < ranks.completed ? job.started_at : job.completed_at;
      send('status_change', { old_status: before === 1 ? 'processing' : 'queued', new_status: status }, time);
    }
    const shown = JSON.stringify(progress);
    if (progress && status === 'processing' && this.#progress.get(id) !== shown) {
      this.#progress.set(id, shown);
      send('progress', progress, job.progress_at);
    }
    if (before === ended || rank < ranks.completed) return;
    this.#progress.delete(id);
    const url = job.output_path ?? job.download_url ?? null;
    const { elapsed_seconds = null, page_count = null } = job;
    if (status === 'completed') send('completed', { output_path: url, elapsed_seconds, page_count, download_url: url });
    if (status === 'failed') send('error', { message: job.error ?? '' });
    known.set(id, ended);
  }

  #compareBatch({ status, progress, batch_id }) {
    const { deliver } = this.#watch;
    const shown = JSON.stringify(progress);
    if (this.#progress.get('') !== shown) deliver({ type: 'batch_progress', batch_id, data: progress });
    this.#progress.set('', shown);
    if (status === 'queued' || status === 'processing') return;
    const { completed, failed, cancelled } = progress;
    const data = { success_count: completed, failed_count: failed, cancelled_count: cancelled };
    deliver({ type: 'batch_completed', batch_id, data });
  }
}

/** Explains why a browser refuses to send a request, or to show its response. Throws a ProgressdError if it knows. */
export async function explain(base) {
  const { origin } = location;
  if (origin === base.origin) return;
  if (location.protocol === 'https:' && base.protocol === 'http:' && !isLocal(base.hostname)) {
    const sentence = `A page with https cannot use ${base.origin}: the browser requires https there too.`;
    throw new ProgressdError(sentence, 'insecure');
  }
  const reads = (path) => fetch(new URL(path, base), { cache: 'no-store' }).then(() => true, () => false);
  const file = 'static/favicon.svg'; // every page may read it
  if (!await reads(file) || await reads('api/health/live') || !await reads(file)) return;
  const sentence = `${base.host} does not allow pages of ${origin}: add "${origin}" to server.allowed_origins there.`;
  throw new ProgressdError(sentence, 'origin', 403);
}
