/** Assembles the page: jobs and uploads in the list, the connection in the header, buttons linked to the API. */

import { currentKey, useKey } from './access.js';
import { cancelBatch, cancelJob, deleteJob, health, listPipelines, retryJob, signedDownloadUrl } from './api.js';
import { Batches } from './batches.js';
import { Selection, withAll } from './bulk.js';
import { Cancelling } from './cancelling.js';
import { stopClocks } from './clock.js';
import { isConfirmed } from './confirm.js';
import { Feed } from './feed.js';
import { moment } from './format.js';
import { Gate, mayWrite } from './gate.js';
import { nameOf } from './job-text.js';
import { isFinished, Jobs } from './jobs.js';
import './keys.js';
import { checkVersion, lazily } from './lazy.js';
import { List } from './list.js';
import { isFiltered } from './query.js';
import { choose, setting } from './settings.js';
import { showSignals } from './signals.js';
import { ended, isStarred, star, startedHere } from './stars.js';
import { t, translatePage } from './text.js';
import { Toasts } from './toasts.js';
import { Toolbar } from './toolbar.js';
import { View } from './view.js';

await translatePage();

/** Rows and cards need different layouts. The page begins with the one that it had last. */
const expectedView = setting('view') ?? setting('mode');
if (expectedView) document.body.dataset.view = expectedView;

/** A hidden page gets no frames, but its title changes too. */
const HIDDEN_MS = 1000;

/** The title and the icon go through all jobs, and need not be exact at each moment. */
const SIGNALS_MS = 500;

/** A shorter loss of the connection needs no banner. */
const AWAY_MS = 5000;

/** The finished jobs in memory, beside those that the user has scrolled to. */
const FINISHED_KEPT = 300;

/** Ends within this time are announced in one sentence. */
const ANNOUNCE_MS = 1000;

/** The server was started, or its pipelines were changed, while it could not be reached. */
const RETRY_MS = 5000;

const CONNECTIONS = { live: t('Live'), polling: t('Polling'), reconnecting: t('Reconnecting…') };

const byId = (id) => document.getElementById(id);

let frame = 0;
let timer = 0;
let isAway = false;
let wasConnected = false;
let awayTimer = 0;
let failures = 0; // since the user last looked at the page
let announced = [];
let signalsTimer = 0;

function redrawSoon() {
  if (document.hidden) timer ||= setTimeout(redraw, HIDDEN_MS);
  else frame ||= requestAnimationFrame(redraw);
}

const jobs = new Jobs((before, after, told) => {
  view.changed(before, after, told);
  if (told && before && after && !isFinished(before) && isFinished(after)) hasEnded(after);
  redrawSoon();
});
/** What sends files, where the key may submit and the server has pipelines. @type {?import('./sending.js').Sending} */
let sending = null;
let isPreparing = false;
const uploads = {
  newestFirst: () => sending?.uploads.newestFirst() ?? [],
  get busy() {
    return Boolean(sending?.uploads.busy);
  },
};
const view = new View(jobs, uploads);
const batches = new Batches(redrawSoon);
const toasts = new Toasts(byId('toasts'));
const feed = new Feed(jobs, {
  onConnection: showConnection,
  onNotice: showNotice,
  onLoaded: redrawSoon,
  onCounts(counts, isExact) {
    Object.assign(view, { counts, isExact });
    redrawSoon();
  },
  onUnknown({ type, data }) {
    if (type === 'status_change') view.changedElsewhere(data);
  },
});

const cancelOne = async ({ batch, id }, isLeaving) => {
  if (batch) await cancelBatch(id, isLeaving);
  else jobs.put(await cancelJob(id, isLeaving));
};
const retryOne = async ({ id }) => {
  const { job_id } = await retryJob(id);
  startedHere(job_id);
  feed.want(job_id);
};
const deleteOne = async ({ id }) => {
  await deleteJob(id).catch((error) => { if (error.status !== 404) throw error; });
  jobs.remove(id, true);
};
const SENTENCES = {
  cancel: (n, reason) => t('{n} job was not cancelled: {reason} | {n} jobs were not cancelled: {reason}', { n, reason }),
  retry: (n, reason) => t('{n} job was not retried: {reason} | {n} jobs were not retried: {reason}', { n, reason }),
  delete: (n, reason) => t('{n} job was not deleted: {reason} | {n} jobs were not deleted: {reason}', { n, reason }),
};

/** Does something with several jobs, and reports failures in one sentence. */
async function withEach(name, entries, action) {
  const errors = await withAll(entries, action);
  if (errors.length) toasts.say(SENTENCES[name](errors.length, errors[0].message));
}

const cancelling = new Cancelling({
  offerUndo: (sentence, onUndo) => toasts.offerUndo(sentence, onUndo),
  onChange: redrawSoon,
  onCancel: (entries, isLeaving) => withEach('cancel', entries, (entry) => cancelOne(entry, isLeaving)),
});

/** The actions of cards and rows, by their buttons' `data-action`. */
const actions = {
  async cancel(entry, button) {
    if (entry.upload) sending.uploads.remove(entry.id);
    else if (setting('cancel') !== 'ask') cancelling.add([entry]);
    else if (isConfirmed(button, t('Really cancel?'))) await cancelOne(entry);
  },
  async retry(entry) {
    if (entry.upload) sending.uploads.retry(entry.id);
    else await retryOne(entry);
  },
  dismiss: ({ id }) => sending.uploads.remove(id),
  delete: deleteOne,
  cancelAll: cancelOne,
};

/** Does what a button of a row says. */
async function act(name, entry, button) {
  if (name === 'star') {
    star(entry.id);
    redrawSoon();
  } else if (name !== 'delete' || isConfirmed(button, t('Really delete?'))) {
    await Promise.resolve(actions[name](entry, button)).catch((error) => toasts.say(t('{name}: {reason}', { name: nameOf(entry), reason: error.message })));
  }
}

const selection = new Selection(byId('bulk'), {
  jobs,
  lines: () => view.lines,
  onChange: redrawSoon,
  actions: {
    cancel: async (chosen) => cancelling.add(chosen),
    retry: (chosen) => withEach('retry', chosen, retryOne),
    delete: (chosen) => withEach('delete', chosen, deleteOne),
  },
});

const marksOf = (id) => ({ selected: selection.has(id), pending: cancelling.has(id), starred: isStarred(id) });
const list = new List({ rows: byId('rows'), cards: byId('jobs'), rest: byId('rest') }, { jobs, uploads, view, batches }, {
  act,
  marksOf,
  select: (id, how) => selection.select(id, how),
  unfold(id, open) {
    view.unfold(id, open);
    redrawSoon();
  },
  onEnd: () => feed.more(),
  onMode(mode) {
    document.body.dataset.view = mode;
    choose('mode', mode);
    byId('options').open = mode === 'cards' && matchMedia('(min-width: 60rem)').matches;
  },
  newCards: async (root) => (await lazily(() => import('./cards.js'), !uploads.busy)).newCards(root, actions),
  onError: (error) => toasts.say(error.message),
});
const toolbar = new Toolbar(byId('work'), (query) => {
  view.show(query);
  feed.show(query);
  redrawSoon();
});
toolbar.start();

const gate = new Gate(byId('gate'), {
  onOpened(who) {
    byId('main').hidden = false;
    byId('connection').hidden = false;
    showWho(who);
    feed.start();
    prepareSending();
  },
  onLocked() {
    feed.stop();
    jobs.clear();
    comeBack();
    byId('main').hidden = true;
    byId('connection').hidden = true;
    showWho(null);
  },
});

/** @param {import('./gate.js').Who | null} who */
function showWho(who) {
  byId('who').hidden = currentKey() === null;
  byId('who-name').textContent = who?.key_name ?? '';
  const looksOnly = !mayWrite(who);
  document.body.toggleAttribute('data-looks-only', looksOnly);
  byId('looks-only').hidden = !looksOnly;
  byId('upload').hidden = looksOnly;
}

/** Signs out, and discards the state of this page. */
function signOut() {
  useKey(null);
  location.reload();
}

/** A link cannot carry the key, so the browser opens a link with a token. */
async function download(event) {
  const link = event.target.closest('a[data-action=download][download]');
  if (!link || currentKey() === null) return;
  event.preventDefault();
  const { jobId } = link.closest('[data-job-id]').dataset;
  try {
    const signed = document.createElement('a');
    signed.href = await signedDownloadUrl(jobId);
    signed.download = '';
    signed.click();
  } catch (error) {
    if (!list.complain(jobId, error.message)) toasts.say(error.message);
  }
}

function redraw() {
  cancelAnimationFrame(frame);
  clearTimeout(timer);
  frame = timer = 0;
  const isNew = view.refresh();
  const { due } = view;
  if (due < Infinity) timer = setTimeout(redraw, due);
  if (isNew) dropFinished();
  const isKnown = feed.isKnown || (feed.isCounted && view.count > 0) || uploads.newestFirst().length > 0;
  list.show(isNew, view.misses ? feed.missing : 0, isKnown);
  toolbar.showCounts(view.counts, view.isExact);
  selection.show();
  showEmpty(!view.lines.length && !feed.loading);
  byId('cut').hidden = !feed.isCut || !view.misses;
  signalsTimer ||= setTimeout(showSignalsNow, SIGNALS_MS);
}

function showSignalsNow() {
  signalsTimer = 0;
  showSignals(jobs.all(), { failures, isAway });
}

/** Keeps the memory bounded: drops finished jobs that the list does not show, or only at its end. */
function dropFinished() {
  const limit = FINISHED_KEPT + feed.loadedFinished;
  if (jobs.finished <= 2 * limit) return;
  const shown = view.lines.flatMap(({ id, members }) => members ?? [id]);
  const kept = new Set(shown.filter((id) => isFinished(jobs.get(id) ?? {})).slice(0, limit));
  const dropped = [...jobs.all()].filter((job) => isFinished(job) && !kept.has(job.id));
  for (const { id } of dropped) jobs.remove(id);
  feed.restartPages();
}

function showEmpty(isEmpty) {
  const empty = byId('empty');
  const { tab } = toolbar.query;
  const isFound = isFiltered(toolbar.query);
  empty.hidden = !isEmpty;
  if (!isEmpty) return;
  const titles = {
    running: t('No job is running'),
    waiting: t('No job is waiting'),
    attention: t('Nothing needs a look'),
    done: t('No job has finished yet'),
    all: t('No jobs yet'),
  };
  const hints = {
    running: t('Running jobs appear here automatically.'),
    waiting: t('Jobs that wait for their turn appear here.'),
    attention: t('Failed jobs appear here, and jobs that are silent or slower than usual.'),
    done: t('Completed, failed and cancelled jobs appear here.'),
    all: t('Jobs of all programs appear here automatically.'),
  };
  setText(empty.querySelector('.empty-title'), isFound ? t('No job matches') : titles[tab]);
  setText(empty.querySelector('[data-part=hint]'), isFound ? t('Try other words or fewer filters.') : hints[tab]);
  empty.querySelector('button').hidden = !isFound;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function hasEnded(job) {
  if (document.hidden && job.status === 'failed') failures += 1;
  ended(job);
  announce(job);
}

/** Screen readers announce only the end of a job, and many ends in one sentence. */
function announce(entry) {
  if (!announced.length) setTimeout(announceEnds, ANNOUNCE_MS);
  announced.push(entry);
}

function announceEnds() {
  const [{ status }] = announced;
  const name = nameOf(announced[0]);
  const n = announced.length;
  const failed = announced.filter((entry) => entry.status === 'failed').length;
  const sentences = {
    completed: t('{name} is done.', { name }),
    failed: t('{name} failed.', { name }),
    cancelled: t('{name} was cancelled.', { name }),
  };
  byId('announcements').textContent = n === 1 ? sentences[status] : t('{n} jobs have ended, {failed} failed.', { n, failed });
  announced = [];
}

/** @param {import('./feed.js').Connection} connection @param {number} heardAt by the local clock */
function showConnection(connection, heardAt) {
  const indicator = byId('connection');
  indicator.dataset.connection = connection;
  indicator.textContent = CONNECTIONS[connection];
  if (connection === 'reconnecting') {
    if (!awayTimer) awayTimer = setTimeout(() => goAway(heardAt), AWAY_MS);
  } else {
    comeBack();
    if (wasConnected) checkVersion();
    wasConnected = true;
    list.clearNotes(); // the server is back, so failed actions can be retried
    showHealth();
    if (currentKey() !== null) gate.enter(); // the key's rights may have changed
  }
}

/** What the page shows is from the moment at which the connection was lost: its clocks stop there. */
function goAway(heardAt) {
  isAway = true;
  list.tick();
  stopClocks(heardAt);
  const time = moment(heardAt);
  byId('away').textContent = t('No connection since {time}. What you see is from then.', { time });
  byId('away').hidden = false;
  document.body.toggleAttribute('data-away', true);
  redrawSoon();
}

function comeBack() {
  clearTimeout(awayTimer);
  awayTimer = 0;
  if (!isAway) return;
  isAway = false;
  stopClocks(null);
  byId('away').hidden = true;
  document.body.toggleAttribute('data-away', false);
  jobs.dropForecasts();
  list.tick();
  redrawSoon();
}

/** @param {string | null} sentence */
function showNotice(sentence) {
  const notice = byId('notice');
  notice.textContent = sentence ?? '';
  notice.hidden = !sentence;
}

async function showHealth() {
  try {
    const { version } = await health();
    byId('version').textContent = version;
    prepareSending();
  } catch {
    // Without a response, the page lacks a version number and a hint. A later response adds them.
  }
}

/** Loads what sends files if it is of use here. The pipelines may have changed since. */
async function prepareSending() {
  if (isPreparing || byId('upload').hidden) return;
  isPreparing = true;
  try {
    const pipelines = await listPipelines();
    if (pipelines.length && !sending) {
      const { Sending } = await lazily(() => import('./sending.js'), true);
      sending = new Sending(byId('upload'), {
        onChange() {
          view.invalidate();
          redrawSoon();
        },
        onArrived(message) {
          startedHere(message.job_id);
          jobs.apply(message);
        },
        onFailed: announce,
      });
    }
    if (sending) sending.update(pipelines);
    else byId('upload').toggleAttribute('data-without-pipelines', true);
  } catch (error) {
    if (!error.status) setTimeout(prepareSending, RETRY_MS); // the server is away
  } finally {
    isPreparing = false;
  }
}

/** A file that is dropped where it cannot be sent must not replace the page. */
function keepOut(event) {
  if (sending || !event.dataTransfer.types.includes('Files')) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = 'none';
}

function setUpSettings(form) {
  form.elements.view.value = setting('view') ?? 'auto';
  form.elements.cancel.checked = setting('cancel') === 'ask';
  form.addEventListener('change', () => {
    choose('view', form.elements.view.value === 'auto' ? null : form.elements.view.value);
    choose('cancel', form.elements.cancel.checked ? 'ask' : null);
    view.invalidate();
    redrawSoon();
  });
  byId('rest').querySelector('button').addEventListener('click', () => {
    form.elements.view.value = 'rows';
    form.dispatchEvent(new Event('change'));
    window.scrollTo(0, 0);
  });
}

function pressed(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.altKey || event.metaKey || target.closest('dialog') || byId('main').hidden) return;
  if (key === 'Escape' && selection.size) {
    selection.clear();
  } else if (key === 'ArrowDown' && (target === byId('search') || target === document.body) && list.rows) {
    event.preventDefault();
    list.rows.focus();
  }
}

gate.enter();
setUpSettings(byId('settings'));
for (const type of ['dragover', 'drop']) document.addEventListener(type, keepOut);
window.addEventListener('beforeunload', (event) => { if (uploads.busy) event.preventDefault(); });
setInterval(() => document.hidden || isAway || list.tick(), 1000);
document.addEventListener('keydown', pressed);
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) failures = 0;
  redrawSoon();
});
document.querySelector('.filters').addEventListener('toggle', ({ target }) => target.open && toolbar.offer(jobs.all()));
byId('empty').querySelector('button').addEventListener('click', () => toolbar.clear());
byId('work').addEventListener('click', download);
byId('sign-out').addEventListener('click', signOut);
