/** Shows one job: its title, state, bar, figures, tasks, error and details. */

import { byId, describe, element, setText } from './dom.js';
import { duration, moment, number, percentage, rate, remaining, steps } from './format.js';
import { isFinished, isLate, isOpenEnded } from './job.js';
import { remainingOf } from './job-model.js';
import { nameOf, percentOf, priorityOf, resultOf, spentOn, stateOf, stepOf } from './job-text.js';
import { sentence, t, timeLocale } from './text.js';

const exactly = (iso) => element('time', { dateTime: iso, title: iso }, whole(iso));
const whole = (iso) => new Intl.DateTimeFormat(timeLocale(), { dateStyle: 'medium', timeStyle: 'medium' }).format(new Date(iso));

/** Shows all of a job that changes with a message. @param {boolean} isPending whether it is about to be cancelled */
export function showJob(job, isPending) {
  const { status, progress = {} } = job;
  const page = document.body;
  page.dataset.status = status;
  page.toggleAttribute('data-stalled', isLate(job));
  page.toggleAttribute('data-pending', isPending);
  setText(byId('name'), nameOf(job));
  setText(byId('kind'), job.kind && job.kind !== nameOf(job) ? job.kind : '');
  showProgress(job);
  showFigures(job, isPending);
  showTasks(status === 'processing' ? progress.tasks ?? [] : []);
  showDetails(job);
  byId('failure').hidden = status !== 'failed';
  setText(byId('error'), sentence(job.error ?? ''));
}

function showProgress(job) {
  const percent = percentOf(job);
  const openEnded = isOpenEnded(job);
  const step = describedStep(job);
  setText(byId('figure'), openEnded || job.status === 'queued' ? '' : percentage(percent));
  setText(byId('step'), step);
  const bar = byId('bar');
  bar.setAttribute('aria-label', t('Progress of {name}', { name: nameOf(job) }));
  bar.toggleAttribute('data-open-ended', openEnded);
  if (openEnded) bar.removeAttribute('aria-valuenow');
  else bar.setAttribute('aria-valuenow', percent);
  bar.setAttribute('aria-valuetext', [stateOf(job), openEnded ? '' : percentage(percent), step].filter(Boolean).join(', '));
  byId('fill').style.transform = openEnded ? '' : `scaleX(${percent / 100})`;
}

/** The page shows the error elsewhere, and knows the place in the queue. */
function describedStep(job) {
  const { status, queue_position: place } = job;
  return status === 'queued' && place ? t('Number {n} in the queue', { n: number(place) }) : stepOf({ ...job, error: undefined });
}

/** Updates what changes with the time alone. */
export function showFigures(job, isPending) {
  const { status, progress = {} } = job;
  const spent = spentOn(job);
  setText(byId('state'), isPending ? t('Cancelling…') : stateOf(job));
  setText(byId('time'), isFinished(job) && spent ? status === 'completed' ? t('in {time}', { time: spent }) : t('after {time}', { time: spent }) : '');
  const running = status === 'processing';
  const { rate: speed, unit } = running ? progress : {};
  describe(byId('figures'), [
    [t('Remaining'), running && !progress.stalled && forecast(job)],
    [t('Elapsed'), running && spent],
    [t('Rate'), rate(speed, unit)],
    [t('Silent'), running && progress.stalled && t('No sign of life from its program')],
    [t('Expected start'), status === 'queued' && job.expected_start && moment(job.expected_start)],
    [t('Waiting since'), status === 'queued' && moment(job.created_at)],
    [t('Finished'), isFinished(job) && job.completed_at && exactly(job.completed_at)],
  ], true);
}

/** The remaining time, its interval, and where it comes from. */
function forecast(job) {
  const left = remainingOf(job);
  if (!left) return null;
  const text = remaining(left.seconds);
  if (!text) return null;
  const interval = remaining(left.seconds, left.low, left.high);
  const { from, runs } = job.progress.eta ?? {};
  const origins = {
    history: t('from {n} earlier run | from {n} earlier runs', { n: runs ?? 0 }),
    rate: t('from its speed so far'),
    producer: t('as its program reports'),
  };
  const about = interval !== text && !interval.startsWith(text) ? interval : '';
  return element('span', {}, text, element('span', { class: 'origin' }, [about, origins[from]].filter(Boolean).join(' · ')));
}

/** Shows the unfinished tasks first. Each line stays the same element, so that its bar moves. */
function showTasks(tasks) {
  const list = byId('tasks');
  byId('tasks-part').hidden = !tasks.length;
  const lines = new Map([...list.children].map((line) => [line.dataset.taskId, line]));
  const sorted = [...tasks].sort((a, b) => isFinished({ status: a.state }) - isFinished({ status: b.state }));
  const shown = sorted.map((task) => showTask(lines.get(task.id) ?? newTaskLine(task.id), task));
  if (shown.length !== list.children.length || shown.some((line, place) => list.children[place] !== line)) {
    list.replaceChildren(...shown);
  }
}

const newTaskLine = (id) => element('li', { 'data-task-id': id },
  ...['name', 'bar', 'detail'].map((part) => element('span', { class: `task-${part}` })));

function showTask(line, { name, current, total, unit, state }) {
  const [title, bar, detail] = line.children;
  const share = state === 'completed' ? 1 : total ? Math.min(1, current / total) : 0;
  line.dataset.status = state;
  setText(title, name);
  title.title = name;
  bar.style.setProperty('--share', share);
  setText(detail, state === 'processing' ? steps(current, total, unit) : stateOf({ status: state }));
  return line;
}

function showDetails(job) {
  const { id, labels = {}, options = {}, progress = {} } = job;
  const { host, ...others } = labels;
  const end = Object.entries(others);
  describe(byId('details'), [
    [t('Host'), host],
    [t('Kind'), job.kind],
    [t('File'), job.input_filename !== nameOf(job) && job.input_filename],
    [t('Pages'), job.page_count && number(job.page_count)],
    [t('Pipeline'), job.pipeline !== job.kind && job.pipeline],
    [t('Options'), chips(Object.entries(options))],
    [t('Labels'), chips(end)],
    [t('Priority'), job.priority && priorityOf(job)],
    [t('Attempt'), job.attempt > 1 && number(job.attempt)],
    [t('Created'), exactly(job.created_at)],
    [t('Started'), job.started_at && exactly(job.started_at)],
    [t('Finished'), job.completed_at && exactly(job.completed_at)],
    [t('Result'), addressOf(job)],
    [t('Stalled after'), job.lease_seconds && duration(job.lease_seconds)],
    [t('Steps'), isFinished(job) && job.status !== 'completed' && steps(progress.current_step, progress.total_steps, progress.unit)],
    [t('Id'), element('code', {}, id)],
  ]);
}

const chips = (pairs) => pairs.length > 0
  && element('span', {}, ...pairs.map(([name, value]) => element('span', { class: 'chip' }, `${name}=${textOf(value)}`)));

const textOf = (value) => (typeof value === 'object' ? JSON.stringify(value) : String(value));

/** The address of a result that is elsewhere. Results of other schemes are text, not links. */
function addressOf(job) {
  const { status, output_path: output } = job;
  if (status !== 'completed' || !output || output.startsWith('/')) return null;
  return resultOf(job) ? element('a', { href: output, rel: 'noopener noreferrer', target: '_blank' }, output) : output;
}
