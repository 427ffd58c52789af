/** Assembles the page: jobs and uploads in the list, the connection in the header, buttons linked to the API. */

import { currentKey, useKey } from './access.js';
import { cancelBatch, cancelJob, deleteJob, health, retryJob, signedDownloadUrl } from './api.js';
import { Batches } from './batches.js';
import { Feed } from './feed.js';
import { Gate, mayWrite } from './gate.js';
import { Intake } from './intake.js';
import { nameOf } from './job-text.js';
import { isFinished, isOpenEnded, Jobs } from './jobs.js';
import { List } from './list.js';
import { loadLanguage, t, translate } from './text.js';
import { Toolbar } from './toolbar.js';
import { Uploads } from './uploads.js';
import { View } from './view.js';

await loadLanguage();
translate(document);
for (const template of document.querySelectorAll('template')) translate(template.content);

/** A hidden page gets no frames, but its title changes too. */
const HIDDEN_MS = 1000;

const TITLE = document.title;
const CONNECTIONS = { live: t('Live'), polling: t('Polling'), reconnecting: t('Reconnecting…') };

const byId = (id) => document.getElementById(id);

let frame = 0;
let timer = 0;
function redrawSoon() {
  if (document.hidden) timer ||= setTimeout(redraw, HIDDEN_MS);
  else frame ||= requestAnimationFrame(redraw);
}
document.addEventListener('visibilitychange', redrawSoon);

/** Screen readers announce only the end of a job. */
function announce(entry) {
  const name = nameOf(entry);
  byId('announcements').textContent = {
    completed: t('{name} is done.', { name }),
    failed: t('{name} failed.', { name }),
    cancelled: t('{name} was cancelled.', { name }),
  }[entry.status];
}

const jobs = new Jobs((before, after, told) => {
  view.changed(before, after, told);
  if (told && before && after && !isFinished(before) && isFinished(after)) announce(after);
  redrawSoon();
});
const uploads = new Uploads({
  onChange() {
    view.invalidate();
    redrawSoon();
  },
  onArrived: (message) => jobs.apply(message),
  onFailed: announce,
});
const view = new View(jobs, uploads);
const batches = new Batches(redrawSoon);
const feed = new Feed(jobs, {
  onConnection: showConnection,
  onNotice: showNotice,
  onLoaded: redrawSoon,
  onCounts(counts) {
    view.counts = counts;
    redrawSoon();
  },
  onUnknown({ type, data }) {
    if (type === 'status_change') view.changedElsewhere(data);
  },
});
const actions = {
  async cancel({ upload, batch, id }) {
    if (upload) uploads.remove(id);
    else if (batch) await cancelBatch(id);
    else jobs.put(await cancelJob(id));
  },
  async retry({ upload, id }) {
    if (upload) uploads.retry(id);
    else feed.want((await retryJob(id)).job_id);
  },
  dismiss: ({ id }) => uploads.remove(id),
  async delete({ id }) {
    await deleteJob(id).catch((error) => { if (error.status !== 404) throw error; });
    jobs.remove(id, true);
  },
  async cancelAll({ id }) {
    await cancelBatch(id);
  },
};
const list = new List({ rows: byId('rows'), cards: byId('jobs'), rest: byId('rest') }, { jobs, uploads, view, batches }, {
  act: (name, entry) => actions[name]?.(entry),
  select() {},
  marksOf: () => undefined,
  unfold(id, open) {
    view.unfold(id, open);
    redrawSoon();
  },
  onEnd: () => feed.more(),
  onMode(mode) {
    document.body.dataset.view = mode;
    byId('options').open = mode === 'cards' && matchMedia('(min-width: 60rem)').matches;
  },
  newCards: async (root) => (await import('./cards.js')).newCards(root, actions),
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
  },
  onLocked() {
    feed.stop();
    jobs.clear();
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
    list.complain(jobId, error.message);
  }
}

function redraw() {
  cancelAnimationFrame(frame);
  clearTimeout(timer);
  frame = timer = 0;
  const isNew = view.refresh();
  const { due } = view;
  if (due < Infinity) timer = setTimeout(redrawSoon, due);
  list.show(isNew, view.misses ? feed.missing : 0);
  toolbar.showCounts(view.counts);
  const isEmpty = !view.lines.length && !feed.loading;
  byId('empty').hidden = !isEmpty;
  document.title = titleOf();
}

function titleOf() {
  let [running, measured, sum] = [0, 0, 0];
  for (const job of jobs.all()) {
    if (job.status !== 'processing') continue;
    running += 1;
    if (isOpenEnded(job)) continue;
    measured += 1;
    sum += job.progress?.percent ?? 0;
  }
  if (!running) return TITLE;
  if (!measured) return t('{n} job running – progressd | {n} jobs running – progressd', { n: running });
  const percent = Math.floor(sum / measured);
  return t('{percent}% – progressd | {percent}% of {n} jobs – progressd', { n: measured, percent });
}

/** @param {import('./feed.js').Connection} connection */
function showConnection(connection) {
  const indicator = byId('connection');
  indicator.dataset.connection = connection;
  indicator.textContent = CONNECTIONS[connection];
  if (connection === 'reconnecting') {
    jobs.dropForecasts();
  } else {
    list.clearNotes(); // the server is back, so failed actions can be retried
    showHealth();
    if (currentKey() !== null) gate.enter(); // the key's rights may have changed
  }
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
    intake.load();
  } catch {
    // Without a response, the page lacks a version number and a hint. A later response adds them.
  }
}

const entered = gate.enter();
const intake = new Intake(byId('upload'), (...chosen) => uploads.add(...chosen), entered);
entered.then(() => uploads.restore());
window.addEventListener('beforeunload', (event) => { if (uploads.busy) event.preventDefault(); });
setInterval(() => document.hidden || list.tick(), 1000);
byId('work').addEventListener('click', download);
byId('sign-out').addEventListener('click', signOut);
