/** Assembles the page: jobs and uploads in the list, the connection in the header, buttons linked to the API. */

import { currentKey, useKey } from './access.js';
import { health } from './api.js';
import { stopClocks } from './clock.js';
import { byId, loadStyle } from './dom.js';
import { Feed } from './feed.js';
import { moment } from './format.js';
import { Gate, mayWrite } from './gate.js';
import { isFinished, Jobs } from './jobs.js';
import './keys.js';
import { checkVersion, lazily } from './lazy.js';
import { List } from './list.js';
import { choose, setting } from './settings.js';
import { showSignals } from './signals.js';
import { isStarred, startedHere } from './stars.js';
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

/** The server was started, or its pipelines were changed, while it could not be reached. */
const RETRY_MS = 5000;

const CONNECTIONS = { live: t('Live'), polling: t('Polling'), reconnecting: t('Reconnecting…') };

let frame = 0;
let timer = 0;
let isAway = false;
let wasConnected = false;
let isEmpty = false;
let awayTimer = 0;
let failures = 0; // since the user last looked at the page
let signalsTimer = 0;

const load = (module) => lazily(module, !uploads.busy);
const complain = ({ message }) => toasts.say(message);

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
const uploads = {
  newestFirst: () => sending?.uploads?.newestFirst() ?? [],
  get busy() {
    return Boolean(sending?.uploads?.busy);
  },
};
const view = new View(jobs, uploads);
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

/** What changes jobs, once the user has done so. @type {?import('./actions.js').Actions} */
let actions = null;
const useActions = async () => {
  const { Actions } = await lazily(() => import('./actions.js'), false); // a reload would lose the action
  return (actions ??= new Actions(byId('bulk'), {
    jobs, feed, toasts, lines: () => view.lines, uploads: () => sending.uploads, onChange: redrawSoon,
  }));
};
/** The actions of cards, by their buttons' `data-action`. They throw the errors that the cards show. */
const ofCards = ['cancel', 'cancelAll', 'delete', 'dismiss', 'retry', 'star'].map((name) =>
  [name, async (...entryAndButton) => (await useActions())[name](...entryAndButton)]);

const marksOf = (id) => ({
  selected: Boolean(actions?.selection.has(id)), pending: Boolean(actions?.isPending(id)), starred: isStarred(id),
});
const list = new List({ rows: byId('rows'), cards: byId('jobs'), rest: byId('rest') }, { jobs, uploads, view }, {
  async newRows(...given) {
    const [{ Rows }] = await Promise.all([load(() => import('./rows.js')), loadStyle('rows.css')]);
    return new Rows(...given);
  },
  newBatches: async () => new (await import('./batches.js')).Batches(redrawSoon),
  onChange: redrawSoon,
  newCards: async (root) => (await load(() => import('./cards.js'))).newCards(root, Object.fromEntries(ofCards), marksOf),
  act: (...given) => (actions ? actions.act(...given) : useActions().then((loaded) => loaded.act(...given))).catch(complain),
  select: (...given) => useActions().then(({ selection }) => selection.select(...given)).catch(complain),
  marksOf,
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
  onError: complain,
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

/** A link cannot carry the key. */
async function download(event) {
  const link = event.target.closest('a[data-action=download][download]');
  if (!link || currentKey() === null) return;
  event.preventDefault();
  const { jobId: id } = link.closest('[data-job-id]').dataset;
  try {
    await (await useActions()).download({ id });
  } catch (error) {
    if (!list.complain(id, error.message)) complain(error);
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
  actions?.selection.show();
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

/** Few users see an empty list. */
function showEmpty(isNow) {
  isEmpty = isNow;
  if (!isEmpty) byId('empty').hidden = true;
  else import('./empty.js').then(({ describe }) => isEmpty && describe(byId('empty'), toolbar.query), () => {});
}

function hasEnded(job) {
  if (document.hidden && job.status === 'failed') failures += 1;
  import('./ends.js').then(({ tell }) => tell(job), () => {});
}

/** @param {import('./feed.js').Connection} connection @param {number} heardAt by the local clock */
function showConnection(connection, heardAt) {
  const indicator = byId('connection');
  indicator.dataset.connection = connection;
  indicator.textContent = CONNECTIONS[connection];
  if (connection === 'reconnecting') {
    stopClocks(heardAt); // what the page shows is from then
    list.tick();
    awayTimer ||= setTimeout(() => goAway(heardAt), AWAY_MS);
  } else {
    comeBack();
    if (wasConnected) checkVersion();
    wasConnected = true;
    list.clearNotes(); // the server is back, so failed actions can be retried
    showHealth();
    if (currentKey() !== null) gate.enter(); // the key's rights may have changed
  }
}

function goAway(heardAt) {
  isAway = true;
  const time = moment(heardAt);
  byId('away').textContent = t('No connection since {time}. What you see is from then.', { time });
  byId('away').hidden = false;
  document.body.toggleAttribute('data-away', true);
  redrawSoon();
}

function comeBack() {
  clearTimeout(awayTimer);
  awayTimer = 0;
  stopClocks(null);
  if (!isAway) return;
  isAway = false;
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

/** Loads what sends files. Called again when the pipelines of the server may have changed. */
async function prepareSending() {
  if (byId('upload').hidden) return;
  try {
    const { Sending } = await load(() => import('./sending.js'));
    sending ??= new Sending(byId('upload'), {
      onError: complain,
      onChange() {
        view.invalidate();
        redrawSoon();
      },
      onArrived(message) {
        startedHere(message.job_id);
        jobs.apply(message);
      },
      onFailed: (upload) => import('./ends.js').then(({ announce }) => announce(upload), () => {}),
    });
    await sending.update();
  } catch (error) {
    if (!error.status) setTimeout(prepareSending, RETRY_MS); // the server is away
  }
}

/** A file that is dropped where it cannot be sent must not replace the page. */
function keepOut(event) {
  if (sending?.isReady || !event.dataTransfer.types.includes('Files')) return;
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
  if (key === 'Escape' && actions?.selection.size) {
    actions.selection.clear();
  } else if (key === 'ArrowDown' && (target === byId('search') || target === document.body)) {
    event.preventDefault();
    list.focus();
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
document.querySelector('.filters').addEventListener('toggle', ({ target }) => target.open && toolbar.openFilters(jobs.all()).catch(complain));
byId('empty').querySelector('button').addEventListener('click', () => toolbar.clear());
byId('work').addEventListener('click', download);
byId('sign-out').addEventListener('click', signOut);
