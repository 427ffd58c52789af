/** The steps of a job as bars over time, in front of their usual times in earlier runs. */

import { now } from './clock.js';
import { byId, drawing, element } from './dom.js';
import { duration, stopwatch } from './format.js';
import { isFinished } from './job.js';
import { t } from './text.js';

const MAX_LANES = 20;
const MAX_FUTURE = 6;

/**
 * A step, or steps whose names differ only in numbers. Times are in seconds since the start of the job.
 * @typedef {object} Lane
 * @property {Set<string>} names
 * @property {{from: number, to: number, open: boolean, title: string}[]} bars
 * @property {{after_seconds: number, seconds: number, runs: number}} [usual]
 */

/** @param {import('./job-model.js').Job} job */
export function showTimeline(job) {
  const lanes = lanesOf(job);
  byId('steps-part').hidden = !lanes.length;
  if (!lanes.length) return;
  const end = Math.max(...lanes.map(endOf), 0.1);
  const longest = [...lanes].sort((a, b) => spent(b) - spent(a)).slice(0, MAX_LANES);
  const shown = lanes.filter((lane) => longest.includes(lane));
  const rows = shown.map((lane) => rowOf(lane, end));
  const axis = element('li', { class: 'axis', 'aria-hidden': 'true' }, element('span', {}, '0'), element('span', {}, span(end)));
  byId('timeline').replaceChildren(element('ol', { class: 'lanes' }, ...rows, axis));
  showLegend(job, shown, lanes.length - shown.length);
}

/** @returns {Lane[]} in order of their first start */
function lanesOf({ steps = [], usual_steps: usual = [], started_at: start, status }) {
  const zero = Date.parse(start);
  const lanes = new Map();
  if (Number.isNaN(zero)) return [];
  for (const { step_name: name, phase, started_at: from, ended_at: to, merged } of steps) {
    if (Date.parse(from) < zero) continue; // of an earlier attempt
    const key = keyOf(name, phase);
    if (!lanes.has(key)) lanes.set(key, { names: new Set(), bars: [] });
    const lane = lanes.get(key);
    lane.names.add(titleOf(name, phase));
    if (merged) lane.names.add(`${merged}`);
    const bar = { from: (Date.parse(from) - zero) / 1000, to: ((to ? Date.parse(to) : now()) - zero) / 1000 };
    lane.bars.push({ ...bar, open: !to && status === 'processing', title: titleOf(name, phase) });
  }
  const future = [];
  const elapsed = (now() - zero) / 1000;
  for (const step of usual) {
    const lane = step.step_name !== undefined && lanes.get(keyOf(step.step_name, step.phase));
    if (lane) lane.usual = step;
    else if (step.step_name === undefined && status === 'processing') future.push({ names: new Set(), bars: [], usual: step });
  }
  const late = future.length ? Math.max(0, elapsed - future[0].usual.after_seconds) : 0;
  for (const lane of future) lane.usual = { ...lane.usual, after_seconds: lane.usual.after_seconds + late };
  return [...lanes.values(), ...future.slice(0, MAX_FUTURE)];
}

const keyOf = (name, phase = '') => `${phase}\n${name}`.replace(/\d+/g, '#');
const titleOf = (name, phase) => (phase && !name.startsWith(phase) ? [phase, name].filter(Boolean).join(' · ') : name);
const endOf = ({ bars, usual }) => Math.max(0, bars.at(-1)?.to ?? 0, usual ? usual.after_seconds + usual.seconds : 0);
const spent = ({ bars, usual }) => (bars.length ? bars.reduce((sum, { from, to }) => sum + to - from, 0) : usual.seconds);

/** The name of a lane: what the names have in common before their numbers. */
function nameOf({ names }) {
  const [first, ...others] = names;
  if (first === undefined) return t('A step not reached yet');
  return others.length ? first.split(/\s*\d/)[0].replace(/[\s·:,(#-]+$/, '') || first : first;
}

function rowOf(lane, end) {
  const { bars, usual } = lane;
  const name = nameOf(lane);
  const share = (seconds) => `${(100 * seconds / end).toFixed(3)}%`;
  const rect = (kind, from, to, height, title) => {
    const made = drawing('rect', { class: kind, x: share(from), y: (28 - height) / 2, height, rx: 2 });
    made.style.width = `max(2px, ${share(to - from)})`;
    if (title) made.append(drawing('title', {}, title));
    return made;
  };
  const svg = drawing('svg', { 'aria-hidden': 'true', height: 28 });
  if (usual) svg.append(rect('usual', usual.after_seconds, usual.after_seconds + usual.seconds, 20));
  bars.forEach((bar, place) => {
    const kind = `spent${bar.open ? ' open' : ''}${place === bars.length - 1 ? ' last' : ''}`;
    svg.append(rect(kind, bar.from, bar.to, 10, `${bar.title}: ${span(bar.to - bar.from)}`));
  });
  const times = [bars.length && span(spent(lane), bars.at(-1).open), usual && t('usually {time}', { time: span(usual.seconds) })];
  return element('li', { class: bars.length ? 'lane' : 'lane future' },
    element('span', { class: 'lane-name', title: name }, name), svg,
    element('span', { class: 'lane-time' }, times.filter(Boolean).join(' · ')));
}

const span = (seconds, open = false) => (open ? stopwatch(seconds) : duration(seconds));

function showLegend(job, lanes, hidden) {
  const runs = Math.max(0, ...lanes.map(({ usual }) => usual?.runs ?? 0));
  const earlier = (job.steps ?? []).some(({ started_at: from }) => from < job.started_at);
  const key = (kind, text) => element('span', {}, element('i', { class: kind, 'aria-hidden': 'true' }), text);
  byId('steps-legend').replaceChildren(...[
    runs && key('usual', t('usual time, from {n} earlier run | usual time, from {n} earlier runs', { n: runs })),
    hidden && element('span', {}, t('{n} short step is not shown | {n} short steps are not shown', { n: hidden })),
    earlier && element('span', {}, t('Only the last attempt is shown')),
  ].filter(Boolean));
}

/** Whether the drawing changes with the time alone. */
export const isMoving = (job) => !isFinished(job) && Boolean(job.steps?.length);
