/** Assembles the page of one job: the gate, the model, the views, and the buttons. */

import { currentKey, useKey } from './access.js';
import { isConfirmed } from './confirm.js';
import { byId, setText } from './dom.js';
import { Gate, mayWrite } from './gate.js';
import { isFinished, isOpenEnded, JobModel } from './job-model.js';
import { isElsewhere, nameOf, showFigures, showJob } from './job-view.js';
import { jobPath, pass, request, token } from './pass.js';
import './progressd-log.js';
import { setUpSharing } from './share.js';
import { language, loadLanguage, t, translate } from './text.js';
import { isMoving, showTimeline } from './timeline.js';

await loadLanguage();
document.documentElement.lang = language;
translate(document);

/** After this time without a connection, the page says that what it shows is old. */
const LOST_MS = 5000;

const id = decodeURIComponent(location.pathname.split('/').pop()).toLowerCase();
const LINES_OF_ERROR = 10;
const CONNECTIONS = { live: 'Live', polling: 'Polling', reconnecting: 'Reconnecting…' };

let who = null;
let lostAt = null;
let stated = null; // the server's notice about itself

const model = new JobModel(id, {
  onChange: show,
  onFinished: announce,
  onPreview() {},
  onAbsent: showAbsence,
  onNotice(notice) {
    stated = typeof notice === 'object' && notice ? sentenceOf(notice) : notice;
    showNotice();
  },
  onConnection: showConnection,
});

const gate = new Gate(byId('gate'), {
  onOpened(found) {
    const first = who === null || byId('main').hidden;
    who = found ?? {};
    showWho();
    if (first) begin();
  },
  onLocked() {
    model.clear();
    byId('log').close();
    byId('main').hidden = byId('nothing').hidden = byId('connection').hidden = true;
    who = null;
    showWho();
  },
});

function begin() {
  model.start();
}

function showWho() {
  byId('who').hidden = currentKey() === null || Boolean(token);
  setText(byId('who-name'), who?.key_name ?? '');
  document.body.toggleAttribute('data-looks-only', Boolean(token) || !mayWrite(who));
}

/** @param {import('./job-model.js').Job} job */
function show(job) {
  const isFirst = byId('main').hidden;
  byId('gate').hidden = byId('nothing').hidden = true;
  byId('main').hidden = false;
  showJob(job);
  showTimeline(job);
  showActions(job);
  showTitle(job);
  showErrorOutput();
  byId('way').hidden = Boolean(token);
  byId('way-batch').hidden = !job.batch_id || Boolean(token);
  if (job.batch_id) byId('batch-link').href = `batches/${job.batch_id}`;
  if (isFirst) openLog(job);
}

function showTitle(job) {
  const name = nameOf(job);
  const values = { name, percent: job.progress?.percent ?? 0 };
  const titles = {
    completed: 'Done: {name}',
    failed: 'Failed: {name}',
    cancelled: 'Cancelled: {name}',
    processing: isOpenEnded(job) ? '{name}' : '{percent}% {name}',
  };
  document.title = `${lostAt ? '⚠ ' : ''}${t(titles[job.status] ?? '{name}', values)} – progressd`;
}

function openLog(job) {
  byId('log-part').hidden = false;
  const log = byId('log');
  log.heading = nameOf(job);
  log.addEventListener('refused', () => {
    log.hidden = true;
    byId('log-hidden').hidden = false;
    setText(byId('log-hidden'), t('This link does not show the log.'));
  });
  log.addEventListener('lines', showErrorOutput);
  log.open({ url: document.baseURI, job: id, ...pass() });
}

/** The last lines of the error output say more than the sentence of the error. */
function showErrorOutput() {
  const lines = model.job?.status === 'failed' ? byId('log').lastLines('e', LINES_OF_ERROR) : [];
  byId('stderr').hidden = !lines.length;
  setText(byId('stderr'), lines.join('\n'));
}

/** Screen readers announce the end of the job. */
function announce(job) {
  const name = nameOf(job);
  const sentences = { completed: '{name} is done.', failed: '{name} failed.', cancelled: '{name} was cancelled.' };
  setText(byId('announcements'), t(sentences[job.status], { name }));
}

/* Buttons */

function showActions(job) {
  const finished = isFinished(job);
  const retryable = (job.status === 'failed' || job.status === 'cancelled') && Boolean(job.pipeline);
  const shown = { cancel: !finished, retry: retryable, delete: finished, share: !token };
  const focused = document.activeElement;
  for (const button of byId('actions').querySelectorAll('button')) {
    const { action } = button.dataset;
    button.hidden = !shown[action];
    if (!button.hasAttribute('data-asking')) button.ariaLabel = button.textContent.trim();
  }
  showDownload(job);
  if (focused?.hidden && focused.closest('#actions')) byId('name').focus();
}

function showDownload({ status, output_path: output }) {
  const link = byId('download');
  const elsewhere = output && isElsewhere(output);
  link.hidden = status !== 'completed' || !output || !(elsewhere || output.startsWith('/'));
  if (link.hidden) return;
  const own = new URL(jobPath(id, '/download'), document.baseURI);
  if (token) own.searchParams.set('token', token);
  link.href = elsewhere ? output : own.href;
  link.target = elsewhere ? '_blank' : '';
  link.toggleAttribute('download', !elsewhere);
  setText(link, elsewhere ? t('Open the result') : t('Download'));
}

const isOpenToAll = () => !who?.authenticated && who?.auth_required === false;
const share = setUpSharing({ page: `jobs/${id}`, tokens: jobPath(id, '/token') }, isOpenToAll);

const actions = {
  share: async () => share(),
  cancel: () => request(jobPath(id), 'DELETE').then(() => model.refresh()),
  async retry() {
    const { job_id: next } = await request(jobPath(id, '/retry'), 'POST');
    location.assign(new URL(`jobs/${next}`, document.baseURI));
  },
  async delete() {
    await request(jobPath(id, '?purge=true'), 'DELETE').catch((error) => { if (error.status !== 404) throw error; });
    model.stop();
    showAbsence('deleted');
  },
};

byId('actions').addEventListener('click', async ({ target }) => {
  const button = target.closest('button');
  const act = actions[button?.dataset.action];
  if (!act || button.ariaBusy === 'true') return;
  if (button.dataset.question && !isConfirmed(button, button.dataset.question)) return;
  await attempt(button, act);
});

/** A link cannot carry the key, so the browser opens a link with a short-lived token. */
byId('download').addEventListener('click', async (event) => {
  const link = event.currentTarget;
  if (!link.hasAttribute('download') || token || currentKey() === null) return;
  event.preventDefault();
  await attempt(link, async () => {
    const made = await request(jobPath(id, '/token'), 'POST');
    const signed = document.createElement('a');
    signed.href = `${jobPath(id, '/download')}?token=${encodeURIComponent(made.token)}`;
    signed.download = '';
    signed.click();
  });
});

async function attempt(button, act) {
  button.ariaBusy = 'true';
  note('');
  try {
    await act();
  } catch (error) {
    note(error.message);
  } finally {
    button.ariaBusy = null;
  }
}

function note(sentence) {
  setText(byId('note'), sentence);
  byId('note').hidden = !sentence;
}

/* The connection and the server */

function showConnection(connection) {
  const indicator = byId('connection');
  indicator.hidden = connection === 'ended';
  indicator.dataset.connection = connection;
  setText(indicator, CONNECTIONS[connection] ? t(CONNECTIONS[connection]) : '');
  if (connection !== 'reconnecting') lostAt = null;
  else lostAt ??= model.job ? Date.now() : null;
  if (connection === 'live') note('');
  showNotice();
}

function showNotice() {
  const since = lostAt !== null && Date.now() - lostAt >= LOST_MS ? new Date(lostAt) : null;
  const time = since && new Intl.DateTimeFormat(language, { timeStyle: 'short' }).format(since);
  const sentence = since ? t('No connection since {time}. What you see is from then.', { time }) : stated;
  setText(byId('notice'), sentence ?? '');
  byId('notice').hidden = !sentence;
  document.body.toggleAttribute('data-lost', Boolean(since));
  if (model.job) showTitle(model.job);
}

function sentenceOf({ type, error, countdown_secs: seconds }) {
  if (type === 'server_shutdown') {
    return seconds
      ? t('The server stops within {n} s. This page reconnects by itself when the server is back.', { n: seconds })
      : t('The server stops now. This page reconnects by itself when the server is back.');
  }
  return error ? t('The server cannot save changes at the moment: {error}.', { error }) : null;
}

/** @param {import('./job-model.js').Absence} why */
function showAbsence(why, sentence = '') {
  const absences = {
    missing: ['There is no such job', 'It was deleted, or the address is not complete. Old jobs are deleted after some time.'],
    deleted: ['This job was deleted', 'Its files and its log were deleted with it.'],
    expired: ['This link no longer works', 'It has expired, or it was withdrawn. Ask for a new one.'],
    forbidden: ['This job is not visible to you', ''],
  };
  const [title, text] = absences[why];
  byId('log').close();
  byId('main').hidden = true;
  byId('nothing').hidden = false;
  setText(byId('nothing-title'), t(title));
  setText(byId('nothing-text'), text ? t(text) : sentence);
  if (why === 'expired') {
    byId('nothing-link').href = `jobs/${id}`;
    setText(byId('nothing-link'), t('Open it with a key'));
  }
  document.title = `${t(title)} – progressd`;
  setText(byId('announcements'), t(title));
}

byId('sign-out').addEventListener('click', () => {
  useKey(null);
  location.reload();
});
window.addEventListener('hashchange', () => location.reload());
setInterval(() => {
  if (document.hidden || !model.job) return;
  if (lostAt !== null) showNotice();
  else if (!isFinished(model.job)) showFigures(model.job);
  if (isMoving(model.job)) showTimeline(model.job);
}, 1000);

if (token) {
  showWho();
  begin();
} else {
  gate.enter();
}
