/** The page of one batch: its progress, its jobs as rows, and what can be done with all of them. */

import { now } from './clock.js';
import { byId, describe, element, setText } from './dom.js';
import { duration, moment, percentage, remaining } from './format.js';
import { Frame } from './frame.js';
import { batchPath } from './job.js';
import { announcementOf, countsOf, priorityOf, stateOf } from './job-text.js';
import { PageActions } from './page-actions.js';
import { pass, request, token } from './pass.js';
import { watch } from './progressd.js';
import { setUpSharing } from './share.js';
import { t } from './text.js';

/** The batch and its jobs are requested again at most this often. */
const REFRESH_MS = 500;
const POLL_MS = 2000;

const id = decodeURIComponent(location.pathname.split('/').pop()).toLowerCase();
const path = (rest = '') => batchPath(id, rest);

let batch = null;
let jobs = [];
let leaving = new AbortController();
let refreshing = 0;
let polling = 0;
let requestedAt = -Infinity;

const frame = new Frame({
  onOpened: follow,
  onLocked() {
    leave();
    [batch, jobs] = [null, []]; // another key may not see them
  },
  onLost: () => batch && showTitle(),
});

const isFinished = ({ status }) => status !== 'queued' && status !== 'processing';
const nameOf = () => batch.name || t('Batch of {n} file | Batch of {n} files', { n: batch.progress.total });

function leave() {
  leaving.abort();
  clearTimeout(refreshing);
  clearTimeout(polling);
  refreshing = 0;
}

async function follow() {
  leave();
  const { signal } = (leaving = new AbortController());
  frame.connect('reconnecting');
  for (let failures = 0; !signal.aborted; failures += 1) {
    if (await refresh(signal)) failures = 0;
    if (signal.aborted) return;
    if (batch && isFinished(batch)) break;
    try {
      if (batch) for await (const message of watch(document.baseURI, { batch: id, ...pass(), signal })) receive(message, signal);
    } catch {
      // The next request for the batch says why the server refused to continue.
    }
    if (signal.aborted) return;
    await new Promise((resume) => setTimeout(resume, failures ? Math.min(15_000, 1000 * 2 ** failures) : 200));
  }
  if (!signal.aborted) frame.connect('ended');
}

function receive(message, signal) {
  const { type, data, job_id: job } = message;
  if (type === 'connection') {
    frame.connect(data.state);
    clearTimeout(polling);
    if (data.state !== 'live') polling = setTimeout(() => poll(signal), POLL_MS);
    else refreshSoon(signal); // for what was missed
  } else if (type === 'server_shutdown' || type === 'server_status') {
    frame.state(message);
  } else if (type === 'progress') {
    const known = jobs.find(({ job_id: one }) => one === job);
    if (!known || isFinished(known)) return;
    Object.assign(known, { status: 'processing', progress: { percent: data.percent, step_name: data.step_name } });
    show();
  } else {
    refreshSoon(signal);
  }
}

async function poll(signal) {
  if (signal.aborted || byId('connection').dataset.connection === 'live') return;
  if (await refresh(signal) && byId('connection').dataset.connection !== 'live') frame.connect('polling');
  if (!signal.aborted && !isFinished(batch)) polling = setTimeout(() => poll(signal), POLL_MS);
}

function refreshSoon(signal) {
  refreshing ||= setTimeout(() => refresh(signal), Math.max(0, requestedAt + REFRESH_MS - performance.now()));
}

/** @returns {Promise<boolean>} whether the server sent the batch */
async function refresh(signal = leaving.signal) {
  clearTimeout(refreshing);
  refreshing = 0;
  requestedAt = performance.now();
  try {
    const [next, members] = await Promise.all([request(path()), request(path('/jobs'))]);
    if (signal.aborted) return false;
    const before = batch;
    [batch, jobs] = [next, members.jobs];
    show();
    if (before && !isFinished(before) && isFinished(batch)) setText(byId('announcements'), announcementOf(batch.status, nameOf()));
    return true;
  } catch (error) {
    if (!signal.aborted) missed(error);
    return false;
  }
}

function missed({ status, message }) {
  const absences = {
    400: [t('There is no such batch'), t('It was deleted, or the address is not complete. Old jobs are deleted after some time.')],
    401: [t('This link no longer works'), t('It has expired, or it was withdrawn. Ask for a new one.')],
    403: [t('This batch is not visible to you'), message],
  };
  const absence = absences[status === 404 ? 400 : status];
  if (!absence || (status === 401 && !token)) {
    if (status !== 401) frame.state(message);
    return;
  }
  leave();
  frame.connect('ended');
  frame.absent(batch && status === 404 ? t('This batch was deleted') : absence[0], absence[1], status === 401);
}

function percentOf() {
  const { total } = batch.progress;
  const sum = jobs.reduce((all, job) => all + (isFinished(job) ? 100 : job.progress?.percent ?? 0), 0);
  return total ? Math.floor(sum / total) : 0;
}

function show() {
  frame.show();
  const percent = percentOf();
  document.body.dataset.status = batch.status;
  setText(byId('name'), nameOf());
  document.body.toggleAttribute('data-pending', actions.isPending);
  setText(byId('state'), actions.isPending ? t('Cancelling…') : stateOf(batch));
  setText(byId('kind'), batch.name ? t('{n} file | {n} files', { n: batch.progress.total }) : '');
  setText(byId('figure'), percentage(percent));
  setText(byId('step'), countsOf(batch.progress));
  const bar = byId('bar');
  bar.setAttribute('aria-label', t('Progress of {name}', { name: nameOf() }));
  bar.setAttribute('aria-valuenow', percent);
  bar.setAttribute('aria-valuetext', `${percentage(percent)}, ${countsOf(batch.progress)}`);
  byId('fill').style.transform = `scaleX(${percent / 100})`;
  const { started_at: start, completed_at: end, estimated_completion: expected, priority } = batch;
  const left = expected && !end ? remaining((Date.parse(expected) - now()) / 1000) : '';
  describe(byId('figures'), [
    [t('Remaining'), left],
    [t('Created'), moment(batch.created_at)],
    [t('Took'), start && end && duration((Date.parse(end) - Date.parse(start)) / 1000)],
    [t('Finished'), end && moment(end)],
    [t('Priority'), priority && priority !== 'normal' && priorityOf(batch)],
  ], true);
  showTitle();
  showMembers();
  showActions();
}

function showTitle() {
  const name = nameOf();
  const title = isFinished(batch) ? t('{state}: {name}', { state: stateOf(batch), name })
    : t('{percent}% {name}', { percent: percentOf(), name });
  document.title = `${frame.isLost ? '⚠ ' : ''}${title} – progressd`;
}

/** Shows a row for each job, in the order of their submission. Each stays the same element. */
function showMembers() {
  const list = byId('members');
  const rows = new Map([...list.children].map((row) => [row.dataset.jobId, row]));
  const shown = jobs.map((job) => showMember(rows.get(job.job_id) ?? newMember(job), job));
  if (shown.length !== list.children.length || shown.some((row, place) => list.children[place] !== row)) list.replaceChildren(...shown);
}

function newMember({ job_id: job, filename }) {
  const href = `jobs/${job}${token ? `#token=${token}` : ''}`;
  return element('li', { class: 'member', 'data-job-id': job },
    element('a', { class: 'member-name', href }, filename || t('Untitled job')),
    element('span', { class: 'member-step' }),
    element('span', { class: 'member-bar', 'aria-hidden': 'true' }),
    element('span', { class: 'member-state' }));
}

function showMember(row, { status, progress = {} }) {
  const [, step, bar, state] = row.children;
  row.dataset.status = status;
  setText(step, status === 'processing' ? progress.step_name ?? '' : '');
  bar.style.setProperty('--share', (status === 'completed' ? 100 : progress.percent ?? 0) / 100);
  setText(state, status === 'processing' ? percentage(progress.percent ?? 0) : stateOf({ status }));
  return row;
}

function showActions() {
  const finished = isFinished(batch);
  const { failed, cancelled } = batch.progress;
  const retry = failed > 0 || (batch.status === 'cancelled' && cancelled > 0);
  actions.show({ cancel: !finished, retry, share: !token, delete: finished });
  const link = byId('download');
  link.hidden = !jobs.some(({ download_url: url }) => url?.startsWith('/'));
  link.href = new URL(path('/download'), document.baseURI) + (token ? `?token=${encodeURIComponent(token)}` : '');
}

const share = setUpSharing({ page: `batches/${id}`, tokens: path('/token') }, () => frame.isOpenToAll);

const actions = new PageActions(path(), {
  entry: () => batch && { id, batch: true, status: batch.status },
  share,
  onChange: () => batch && show(),
  onCancelled: () => refresh(),
  next: ({ batch_id: next }) => `batches/${next}`,
  onDeleted() {
    leave();
    frame.absent(t('This batch was deleted'), t('The files and logs of its jobs were deleted with it.'));
  },
});

frame.enter();
