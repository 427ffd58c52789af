/** Assembles the page: jobs and uploads in the list, the connection in the header, buttons linked to the API. */

import { currentKey, useKey } from './access.js';
import { cancelBatch, cancelJob, deleteJob, health, retryJob, signedDownloadUrl } from './api.js';
import { BatchCard } from './batch-card.js';
import { Batches } from './batches.js';
import { Feed } from './feed.js';
import { count } from './format.js';
import { Gate, mayWrite } from './gate.js';
import { JobCard, nameOf } from './job-card.js';
import { JobList } from './job-list.js';
import { isOpenEnded, Jobs } from './jobs.js';
import { Intake } from './intake.js';
import { Uploads } from './uploads.js';

/** A burst of messages is one redraw. It uses a timer, not a frame: the title must change in the background too. */
const REDRAW_MS = 50;

const TITLE = document.title;
const CONNECTIONS = { live: 'Live', polling: 'Polling', reconnecting: 'Reconnecting…' };
const ENDINGS = { completed: 'is done', failed: 'failed', cancelled: 'was cancelled' };

const byId = (id) => document.getElementById(id);

let redrawing = 0;
function redrawSoon() {
  redrawing ||= setTimeout(redraw, REDRAW_MS);
}

/** Screen readers announce only the end of a job. */
function announce(entry) {
  byId('announcements').textContent = `${nameOf(entry)} ${ENDINGS[entry.status]}.`;
}

const jobs = new Jobs({ onChange: redrawSoon, onFinished: announce });
const uploads = new Uploads({
  onChange: redrawSoon,
  onArrived: (message) => jobs.apply(message),
  onFailed: announce,
});
const batches = new Batches(redrawSoon);
const feed = new Feed(jobs, { onConnection: showConnection, onNotice: showNotice });
const actions = {
  async cancel({ upload, id }) {
    if (upload) uploads.remove(id);
    else jobs.put(await cancelJob(id));
  },
  async retry({ upload, id }) {
    if (upload) uploads.retry(id);
    else feed.want((await retryJob(id)).job_id);
  },
  dismiss: ({ id }) => uploads.remove(id),
  async delete({ id }) {
    await deleteJob(id).catch((error) => { if (error.status !== 404) throw error; });
    jobs.remove(id);
  },
  async cancelAll({ id }) {
    await cancelBatch(id);
  },
};
const newList = (root) => new JobList(root, actions, newCard);
const newCard = ({ batch }) => (batch ? new BatchCard(newList) : new JobCard());
const list = newList(byId('jobs'));

const gate = new Gate(byId('gate'), {
  onOpened(who) {
    byId('main').hidden = false;
    byId('connection').hidden = false;
    showWho(who);
    feed.start();
    uploads.restore();
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
  const { jobId } = link.closest('.job').dataset;
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
  redrawing = 0;
  const known = jobs.newestFirst();
  const entries = [...uploads.newestFirst(), ...known];
  list.show(batches.group(entries));
  byId('empty').hidden = entries.length > 0;
  byId('summary').textContent = summaryOf(entries);
  document.title = titleOf(known);
}

function summaryOf(entries) {
  const isRunning = ({ status, waiting }) => status === 'processing' || (status === 'uploading' && !waiting);
  const isWaiting = ({ status, waiting, pipeline }) => waiting || (status === 'queued' && pipeline);
  const running = entries.filter(isRunning).length;
  const waiting = entries.filter(isWaiting).length;
  return [running && `${running} running`, waiting && `${waiting} waiting`].filter(Boolean).join(', ');
}

function titleOf(known) {
  const running = known.filter(({ status }) => status === 'processing');
  if (!running.length) return TITLE;
  const measured = running.filter((job) => !isOpenEnded(job));
  if (!measured.length) return `${count(running.length, 'job')} running – ${TITLE}`;
  const sum = measured.reduce((total, { progress }) => total + (progress?.percent ?? 0), 0);
  const percent = `${Math.floor(sum / measured.length)}%`;
  return `${measured.length === 1 ? percent : `${percent} of ${count(measured.length, 'job')}`} – ${TITLE}`;
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

const intake = new Intake(byId('upload'), (...chosen) => uploads.add(...chosen), gate.enter());
window.addEventListener('beforeunload', (event) => { if (uploads.busy) event.preventDefault(); });
setInterval(() => document.hidden || list.tick(), 1000);
byId('jobs').addEventListener('click', download);
byId('sign-out').addEventListener('click', signOut);
