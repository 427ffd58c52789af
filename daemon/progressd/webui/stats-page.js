/** The page with the statistics of the daemon. */

import { chart } from './charts.js';
import { byId, describe, element, setText } from './dom.js';
import { duration, moment } from './format.js';
import { Frame } from './frame.js';
import { nameOf, stateOf } from './job-text.js';
import { request } from './pass.js';
import { language, t } from './text.js';

const POLL_MS = 5000;
const LONGEST_POLL_MS = 30_000;
const RECENT = 200; // finished jobs
const LONGEST = 10;
const SMOOTH = 4; // samples over which rates are computed, so that one job a minute is not a spike

let leaving = new AbortController();

const frame = new Frame({
  onOpened() {
    leaving.abort();
    leaving = new AbortController();
    follow(leaving.signal);
  },
  onLocked: () => leaving.abort(),
});

const number = (value) => new Intl.NumberFormat(language, { maximumFractionDigits: 1 }).format(value);
const percentage = (value) => new Intl.NumberFormat(language, { style: 'percent', maximumFractionDigits: 1 }).format(value);

/** Shows the statistics again and again, until the page is locked. */
async function follow(signal) {
  for (let failures = 0; !signal.aborted; ) {
    try {
      await refresh(signal);
      failures = 0;
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
      frame.connect('reconnecting');
      frame.state(error.message);
    }
    await new Promise((resume) => setTimeout(resume, Math.min(LONGEST_POLL_MS, POLL_MS * 2 ** failures)));
    while (document.hidden) {
      await new Promise((resume) => document.addEventListener('visibilitychange', resume, { once: true }));
    }
  }
}

async function refresh(signal) {
  const [stats, history, recent] = await Promise.all([
    request('api/stats'),
    request('api/stats/history').catch((error) => { if (error.status === 403) return null; throw error; }),
    request(`api/jobs/history?limit=${RECENT}`),
  ]);
  if (signal.aborted) return;
  frame.show();
  frame.state(null);
  frame.connect('ended');
  showTiles(stats, history);
  showCharts(history);
  showLongest(recent.jobs);
  setText(byId('version'), stats.server.version);
}

function showTiles({ server, jobs, system }, history) {
  const now = history?.samples.at(-1);
  const ended = jobs.completed_jobs + jobs.failed_jobs;
  describe(byId('tiles'), [
    [t('Running'), number(jobs.active_jobs)],
    [t('Waiting'), number(jobs.queued_jobs)],
    [t('Done'), number(jobs.completed_jobs)],
    [t('Failed'), ended ? t('{n} ({percent})', { n: number(jobs.failed_jobs), percent: percentage(jobs.failed_jobs / ended) }) : number(jobs.failed_jobs)],
    [t('Mean duration'), jobs.avg_processing_time ? duration(jobs.avg_processing_time) : '–'],
    [t('Watchers'), number(now?.watchers ?? system.websocket_connections)],
    [t('Slow watchers disconnected'), now ? number(now.slow_watchers) : ''],
    [t('Memory'), t('{n} MiB', { n: number(system.memory_used_mb) })],
    [t('Up for'), duration(server.uptime_seconds)],
  ], true);
}

function showCharts(history) {
  byId('charts-hidden').hidden = history !== null;
  setText(byId('charts-hidden'), t('The history covers all jobs, but this key may see only some.'));
  if (!history) return;
  const samples = history.samples.map((sample) => ({ ...sample, at: Date.parse(sample.time) }));
  const levels = (name) => samples.map((sample) => [sample.at, sample[name]]);
  const rates = (per, ...names) => samples.slice(1).map((sample, place) => {
    const before = samples[Math.max(0, place + 1 - SMOOTH)];
    const grown = names.reduce((sum, name) => sum + sample[name] - before[name], 0);
    return [sample.at, Math.max(0, grown / Math.max(1, (sample.at - before.at) / 1000) * per)];
  });
  byId('charts').replaceChildren(
    chart({ title: t('Jobs done per minute'), kind: 'done', points: rates(60, 'completed') }),
    chart({ title: t('Jobs failed per minute'), kind: 'failed', points: rates(60, 'failed') }),
    chart({ title: t('Unfinished jobs'), points: levels('unfinished') }),
    chart({ title: t('Events per second'), points: rates(1, 'events') }),
    chart({ title: t('Messages to watchers per second'), points: rates(1, 'deliveries') }),
    chart({ title: t('Watchers'), points: levels('watchers') }),
    chart({ title: t('Slow watchers disconnected per minute'), kind: 'caution', points: rates(60, 'slow_watchers') }),
    chart({ title: t('Delay of the event loop'), kind: 'caution', points: levels('lag_seconds'), format: (value) => t('{n} ms', { n: number(1000 * value) }) }),
  );
}

function showLongest(jobs) {
  const secondsOf = ({ elapsed_seconds: seconds, started_at: from, completed_at: to }) => seconds ?? (Date.parse(to) - Date.parse(from)) / 1000;
  const longest = jobs.filter((job) => secondsOf(job) > 0).sort((a, b) => secondsOf(b) - secondsOf(a)).slice(0, LONGEST);
  byId('longest').closest('.table').hidden = !longest.length;
  byId('longest-none').hidden = longest.length > 0;
  byId('longest').replaceChildren(...longest.map((job) => element('tr', { 'data-status': job.status },
    element('td', {}, element('a', { href: `jobs/${job.id}` }, nameOf(job))),
    ...[job.kind, stateOf(job), duration(secondsOf(job)), moment(job.completed_at)].map((text) => element('td', {}, text)))));
}

frame.enter();
