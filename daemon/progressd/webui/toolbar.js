/** Above the list: tabs with numbers, the search, filters and the order. They are the query of the page's URL. */

import { element, setText } from './dom.js';
import { number } from './format.js';
import { lazily } from './lazy.js';
import { isFiltered, parseQuery, searchOf, SORTS } from './query.js';
import { t } from './text.js';

/** The page searches this long after the last key. */
const PAUSE_MS = 150;

/** @returns {Record<string, string>} the names of SORTS */
export const sortNames = () => ({
  '-created': t('Newest first'),
  created: t('Oldest first'),
  '-updated': t('Last changed first'),
  '-finished': t('Last finished first'),
  name: t('By name'),
});

export class Toolbar {
  #root;
  #onQuery;
  #query;
  #timer = 0;
  #shown = ''; // the counts
  #search;
  #filters = null; // once they have been opened
  #tabs;

  /**
   * @param {HTMLElement} root
   * @param {(query: import('./query.js').Query) => void} onQuery
   */
  constructor(root, onQuery) {
    this.#root = root;
    this.#onQuery = onQuery;
    this.#search = root.querySelector('[type=search]');
    this.#tabs = root.querySelector('.tabs');
    this.#tabs.addEventListener('click', (event) => this.#followed(event));
    this.#tabs.addEventListener('scroll', () => this.#fade(), { passive: true });
    new ResizeObserver(() => this.#reveal()).observe(this.#tabs);
    root.querySelector('.chips').addEventListener('click', ({ target }) => this.#removed(target.closest('button')));
    this.#search.addEventListener('input', () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#searched(), PAUSE_MS);
    });
    this.#search.addEventListener('keydown', ({ key }) => {
      if (key === 'Enter') this.#searched();
    });
    window.addEventListener('popstate', () => this.#read());
    for (const menu of root.querySelectorAll('.menu')) closeOutside(menu);
    this.#query = parseQuery(location.search);
  }

  /** @returns {import('./query.js').Query} */
  get query() {
    return this.#query;
  }

  /** Shows the query of the URL, and reports it. */
  start() {
    this.#read();
  }

  /** Shows all jobs again, in the same tab. */
  clear() {
    this.#go({ ...this.#query, q: '', kind: '', host: '', labels: [] });
  }

  /** @param {Record<string, number> | null} counts of the jobs in each tab @param {boolean} isExact */
  showCounts(counts, isExact) {
    const key = JSON.stringify([counts, isExact]);
    if (key === this.#shown) return;
    this.#shown = key;
    for (const link of this.#root.querySelectorAll('[data-tab]')) {
      const n = counts?.[link.dataset.tab];
      const figure = link.querySelector('b');
      const shown = number(Math.max(0, n ?? 0));
      const text = n === undefined ? '' : isExact ? shown : t('{n}+', { n: shown });
      const isFirst = !figure.textContent && text;
      setText(figure, text);
      figure.toggleAttribute('data-none', !n);
      if (isFirst) this.#reveal();
    }
  }

  /** Shows the form of filters. It offers the values that the jobs have. @param {Iterable<import('./jobs.js').Job>} jobs */
  async openFilters(jobs) {
    const { Filters } = await lazily(() => import('./filters.js'), false);
    this.#filters ??= new Filters(this.#root.querySelector('.filters'), (changed) => this.#filtered(changed));
    this.#filters.show(this.#query);
    this.#filters.offer(jobs);
  }

  #read() {
    this.#query = parseQuery(location.search);
    this.#show();
    this.#onQuery(this.#query);
  }

  #go(query, replacing = false) {
    this.#query = query;
    const url = searchOf(query) === '?' ? location.pathname : searchOf(query);
    history[replacing ? 'replaceState' : 'pushState'](null, '', url);
    this.#show();
    this.#onQuery(query);
  }

  #followed(event) {
    const tab = event.target.closest('a')?.dataset.tab;
    if (!tab || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.#go({ ...this.#query, tab });
  }

  #searched() {
    clearTimeout(this.#timer);
    const q = this.#search.value.trim();
    if (q !== this.#query.q) this.#go({ ...this.#query, q }, Boolean(this.#query.q));
  }

  #filtered({ label, ...changed }) {
    const labels = [...this.#query.labels];
    if (label && !labels.includes(label)) labels.push(label);
    this.#go({ ...this.#query, ...changed, labels });
  }

  #removed(button) {
    if (!button) return;
    const { name, value } = button.dataset;
    if (name === 'label') this.#go({ ...this.#query, labels: this.#query.labels.filter((label) => label !== value) });
    else if (name === 'sort') this.#go({ ...this.#query, sort: SORTS[0] });
    else this.#go({ ...this.#query, [name]: '' });
    this.#search.focus();
  }

  /** Scrolls the strip of tabs, but not the page, to the current tab. */
  #reveal() {
    const strip = this.#tabs.getBoundingClientRect();
    const link = this.#tabs.querySelector('[aria-current]')?.getBoundingClientRect();
    if (link && link.left < strip.left) this.#tabs.scrollLeft -= strip.left - link.left;
    else if (link && link.right > strip.right) this.#tabs.scrollLeft += link.right - strip.right;
    this.#fade();
  }

  /** Shows at which end of the strip there are more tabs. */
  #fade() {
    const { scrollLeft, scrollWidth, clientWidth } = this.#tabs;
    this.#tabs.toggleAttribute('data-before', scrollLeft > 1);
    this.#tabs.toggleAttribute('data-after', scrollLeft + clientWidth < scrollWidth - 1);
  }

  #show() {
    const { tab, q, kind, host, labels, sort } = this.#query;
    for (const link of this.#root.querySelectorAll('[data-tab]')) {
      link.href = searchOf({ ...this.#query, tab: link.dataset.tab });
      if (link.dataset.tab === tab) link.setAttribute('aria-current', 'page');
      else link.removeAttribute('aria-current');
    }
    if (this.#search.value.trim() !== q) this.#search.value = q;
    this.#filters?.show(this.#query);
    const chips = [
      kind && ['kind', kind, t('Kind: {value}', { value: kind })],
      host && ['host', host, t('Host: {value}', { value: host })],
      ...labels.map((label) => ['label', label, label]),
      sort !== SORTS[0] && ['sort', sort, t('Order: {value}', { value: sortNames()[sort] })],
    ].filter(Boolean);
    const row = this.#root.querySelector('.chips');
    row.replaceChildren(...chips.map(([name, value, text]) => chip(name, value, text)));
    row.hidden = !chips.length;
    this.#root.toggleAttribute('data-filtered', isFiltered(this.#query));
    this.#reveal();
  }
}

const chip = (name, value, text) => element('button',
  { type: 'button', 'data-name': name, 'data-value': value, 'aria-label': t('Remove the filter {filter}', { filter: text }) }, text);

/** A menu closes with Escape, and when the user does something else. */
function closeOutside(menu) {
  document.addEventListener('pointerdown', ({ target }) => {
    if (!menu.contains(target)) menu.open = false;
  });
  menu.addEventListener('focusout', ({ relatedTarget }) => {
    if (relatedTarget && !menu.contains(relatedTarget)) menu.open = false;
  });
  menu.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !menu.open) return;
    event.stopPropagation();
    menu.open = false;
    menu.querySelector('summary').focus();
  });
}
