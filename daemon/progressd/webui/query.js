/** What the list shows: a tab, words, filters and an order. It is the query of the page's URL. No DOM, no network. */

import { FINISHED, isFinished, needsLook } from './jobs.js';

export const TABS = ['running', 'waiting', 'attention', 'done', 'all'];
export const SORTS = ['-created', 'created', '-updated', '-finished', 'name'];

/**
 * @typedef {object} Query
 * @property {string} tab one of TABS
 * @property {string} q words, each of which must occur
 * @property {string} kind empty for all kinds
 * @property {string} host empty for all hosts
 * @property {string[]} labels each KEY=VALUE; all must hold
 * @property {string} sort one of SORTS
 */

/** @param {string} search of a URL @returns {Query} unknown values count as absent */
export function parseQuery(search) {
  const given = new URLSearchParams(search);
  const oneOf = (known, name, otherwise) => (known.includes(given.get(name)) ? given.get(name) : otherwise);
  const text = (name) => (given.get(name) ?? '').trim();
  return {
    tab: oneOf(TABS, 'tab', 'all'),
    q: text('q'),
    kind: text('kind'),
    host: text('host'),
    labels: given.getAll('label').filter((label) => label.indexOf('=') > 0),
    sort: oneOf(SORTS, 'sort', SORTS[0]),
  };
}

/** @param {Query} query @returns {string} the search of its URL; `?` for the whole list, because a link needs one */
export function searchOf(query) {
  const params = filtersOf(query);
  if (query.tab !== 'all') params.set('tab', query.tab);
  if (query.sort !== SORTS[0]) params.set('sort', query.sort);
  return `?${params}`;
}

/** @param {Query} query @returns {URLSearchParams} its words and filters, as the URL and `GET /api/jobs` have them */
export function filtersOf({ q, kind, host, labels }) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries({ q, kind, host })) if (value) params.set(name, value);
  for (const label of labels) params.append('label', label);
  return params;
}

/** @param {Query} query */
export const isFiltered = ({ q, kind, host, labels }) => Boolean(q || kind || host || labels.length);

/** The jobs of each tab. */
export const IN_TAB = {
  running: ({ status, waiting }) => status === 'processing' || (status === 'uploading' && !waiting),
  waiting: ({ status, waiting }) => status === 'queued' || Boolean(waiting),
  attention: needsLook,
  done: (job) => isFinished(job) && !job.upload,
  all: () => true,
};

/** The query of `GET /api/jobs` for the finished jobs of each tab. The page has the unfinished jobs anyway. */
const FINISHED_OF = {
  attention: { attention: 'true' },
  done: { status: [...FINISHED].join() },
  all: { status: [...FINISHED].join() },
};

/** @param {Query} query @returns {Record<string, string> | null} null for a tab without finished jobs */
export const finishedOf = (query) => FINISHED_OF[query.tab] ?? null;

/** @param {Query} query @returns {(job: object) => boolean} whether a job has its words and filters, as the server decides */
export function matcher({ q, kind, host, labels }) {
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  const pairs = labels.map((label) => [label.slice(0, label.indexOf('=')), label.slice(label.indexOf('=') + 1)]);
  if (host) pairs.push(['host', host]);
  return (job) =>
    (!kind || job.kind === kind)
    && pairs.every(([key, value]) => job.labels?.[key] === value)
    && (!words.length || hasWords(job, words));
}

function hasWords({ name, kind, input_filename, labels, error, id }, words) {
  const text = [name, kind, input_filename, error, id, ...Object.values(labels ?? {})].join('\n').toLowerCase();
  return words.every((word) => text.includes(word));
}
