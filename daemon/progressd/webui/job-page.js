/** Assembles the page of one job: the frame, the model, the views, and the buttons. */

import { byId, setText } from './dom.js';
import { Frame } from './frame.js';
import { isFinished, isOpenEnded, jobPath } from './job.js';
import { JobModel } from './job-model.js';
import { JobPreviews } from './job-previews.js';
import { announcementOf, canRetry, nameOf, resultOf } from './job-text.js';
import { showFigures, showJob } from './job-view.js';
import { PageActions } from './page-actions.js';
import { pass, token } from './pass.js';
import './progressd-log.js';
import { setUpSharing } from './share.js';
import { t } from './text.js';
import { isMoving, showTimeline } from './timeline.js';

const LINES_OF_ERROR = 10;

const id = decodeURIComponent(location.pathname.split('/').pop()).toLowerCase();

const previews = new JobPreviews(id);

const frame = new Frame({
  onOpened: () => model.start(),
  onLocked() {
    model.clear();
    previews.clear();
    byId('log').close();
  },
  onLost: () => model.job && showTitle(model.job),
});

const model = new JobModel(id, {
  onChange: show,
  onFinished: announce,
  onPreview: (preview) => previews.add(preview),
  onAbsent: showAbsence,
  onNotice: (notice) => frame.state(notice),
  onConnection: (connection) => frame.connect(connection),
});

/** @param {import('./job-model.js').Job} job */
function show(job) {
  const isFirst = frame.show();
  showJob(job, actions.isPending);
  showTimeline(job);
  showActions(job);
  showTitle(job);
  showErrorOutput();
  byId('way-batch').hidden = !job.batch_id;
  if (job.batch_id) byId('batch-link').href = `batches/${job.batch_id}`;
  if (isFirst) {
    openLog(job);
    previews.load();
  }
}

function showTitle(job) {
  const name = nameOf(job);
  const values = { name, percent: job.progress?.percent ?? 0 };
  const titles = {
    completed: t('Done: {name}', values),
    failed: t('Failed: {name}', values),
    cancelled: t('Cancelled: {name}', values),
    processing: isOpenEnded(job) ? name : t('{percent}% {name}', values),
  };
  document.title = `${frame.isLost ? '⚠ ' : ''}${titles[job.status] ?? name} – progressd`;
}

function openLog(job) {
  const log = byId('log');
  byId('log-part').hidden = log.hidden = false;
  byId('log-hidden').hidden = true;
  log.heading = nameOf(job);
  log.open({ url: document.baseURI, job: id, ...pass() });
}

byId('log').addEventListener('lines', showErrorOutput);
byId('log').addEventListener('refused', () => {
  byId('log').hidden = true;
  byId('log-hidden').hidden = false;
  setText(byId('log-hidden'), token ? t('This link does not show the log.') : t('The log is not available.'));
});

/** The last lines of the error output say more than the sentence of the error. */
function showErrorOutput() {
  const lines = model.job?.status === 'failed' ? byId('log').lastLines('e', LINES_OF_ERROR) : [];
  byId('stderr').hidden = !lines.length;
  setText(byId('stderr'), lines.join('\n'));
}

/** Screen readers announce the end of the job. */
function announce(job) {
  setText(byId('announcements'), announcementOf(job.status, nameOf(job)));
}

function showActions(job) {
  const finished = isFinished(job);
  actions.show({ cancel: !finished, retry: canRetry(job), delete: finished, share: !token });
  showDownload(job);
}

function showDownload(job) {
  const link = byId('download');
  const result = resultOf(job);
  link.hidden = !result;
  if (!result) return;
  const url = new URL(result.href, document.baseURI);
  if (token && !result.elsewhere) url.searchParams.set('token', token);
  link.href = url.href;
  link.target = result.elsewhere ? '_blank' : '';
  link.toggleAttribute('download', !result.elsewhere);
  setText(link, result.elsewhere ? t('Open result') : t('Download'));
}

const share = setUpSharing({ page: `jobs/${id}`, tokens: jobPath(id, '/token') }, () => frame.isOpenToAll);

const actions = new PageActions(jobPath(id), {
  entry: () => model.job,
  share,
  onChange: () => model.job && show(model.job),
  onCancelled: () => model.refresh(),
  next: ({ job_id: next }) => `jobs/${next}`,
  onDeleted() {
    model.stop();
    showAbsence('deleted');
  },
});

/** @param {import('./job-model.js').Absence} why */
function showAbsence(why, sentence = '') {
  const absences = {
    missing: [t('There is no such job'), t('It was deleted, or the address is not complete. Old jobs are deleted after some time.')],
    deleted: [t('This job was deleted'), t('Its files and its log were deleted with it.')],
    expired: [t('This link no longer works'), t('It has expired, or it was withdrawn. Ask for a new one.')],
    forbidden: [t('This job is not visible to you'), sentence],
  };
  const [title, text] = absences[why];
  byId('log').close();
  frame.absent(title, text, why === 'expired');
}

setInterval(() => {
  if (document.hidden || !model.job || isFinished(model.job) || frame.isLost) return;
  showFigures(model.job, actions.isPending);
  if (isMoving(model.job)) showTimeline(model.job);
}, 1000);

frame.enter();
