/** The list as rows, of which only the visible ones exist. Keyboard and screen reader move over all of them. */

import { element } from './dom.js';
import { Row } from './row.js';
import { t } from './text.js';

/** Rows above and below the window that exist too. */
const SPARE = 6;

/** After this time without scrolling, the order of the rows in the document is right again, for screen readers. */
const SETTLE_MS = 200;

export class Rows {
  #root;
  #body;
  #source;
  #actions;
  /** @type {import('./view.js').Line[]} */
  #lines = [];
  #at = new Map(); // the index of each line by its id
  /** @type {Map<string, Row>} */
  #rows = new Map();
  #active = null; // the id of the line that has the focus, or had it last
  #missing = 0;
  #height = 40;
  #frame = 0;
  #settling = 0;
  #listening = new AbortController();

  /**
   * @param {HTMLElement} root
   * @param {object} source
   * @param {(line: import('./view.js').Line) => object} source.entryOf the job, upload or batch of a line
   * @param {(id: string) => object} source.marksOf `{selected, pending, starred}` of a job
   * @param {string} [source.base] the address of the daemon, for links
   * @param {() => void} source.onEnd the end of the list is in sight
   * @param {object} actions `act(name, entry, button)`, `select(id, how)`, `unfold(id, open)`
   */
  constructor(root, source, actions) {
    this.#root = root;
    this.#source = source;
    this.#actions = actions;
    this.#body = element('div', { class: 'rows-body', role: 'rowgroup' });
    root.replaceChildren(header(), this.#body);
    const { signal } = this.#listening;
    root.addEventListener('keydown', (event) => this.#pressed(event), { signal });
    root.addEventListener('focusin', ({ target }) => this.#focused(target), { signal });
    root.addEventListener('click', (event) => this.#clicked(event), { signal });
    const render = () => this.update();
    document.addEventListener('scroll', render, { capture: true, passive: true, signal });
    window.addEventListener('resize', render, { signal });
    const probe = element('div', { class: 'row-probe' });
    root.append(probe);
    new ResizeObserver(() => {
      this.#height = probe.getBoundingClientRect().height || this.#height;
      this.#resize();
      this.update();
    }).observe(probe);
  }

  /** Ends the listeners for the document, which would keep a removed list in memory. */
  close() {
    this.#listening.abort();
    clearTimeout(this.#settling);
  }

  /**
   * @param {import('./view.js').Line[]} lines in their new order
   * @param {number} missing the lines that are still being loaded
   */
  show(lines, missing) {
    const anchor = this.#anchor();
    const before = this.#at.get(this.#active);
    const focused = this.#focusedRow();
    this.#lines = lines;
    this.#missing = missing;
    this.#at = new Map(lines.map(({ id }, index) => [id, index]));
    this.#root.setAttribute('aria-rowcount', lines.length + missing + 1);
    this.#resize();
    if (this.#active !== null && !this.#at.has(this.#active)) {
      this.#active = lines[Math.min(before ?? 0, lines.length - 1)]?.id ?? null;
    }
    this.#restore(anchor);
    this.#render();
    if (focused && this.#focusedRow()?.id !== this.#active) {
      this.#rows.get(this.#active)?.element.focus({ preventScroll: true });
    }
  }

  /** Shows the changes of the visible rows in the next frame. */
  update() {
    this.#frame ||= requestAnimationFrame(() => this.#render());
  }

  /** Updates the times of the visible rows. */
  tick() {
    for (const row of this.#rows.values()) row.tick();
  }

  /** Moves the focus to the first row, or to the one that had it. */
  focus() {
    this.#goTo(this.#at.get(this.#active) ?? 0);
  }

  #resize() {
    this.#body.style.height = `${(this.#lines.length + this.#missing) * this.#height}px`;
  }

  /** The line that does not move when others come or go: the one with the focus, or the first visible one. */
  #anchor() {
    const top = this.#top();
    const edge = this.#edge();
    const placeOf = (index) => top + index * this.#height;
    const focused = this.#at.get(this.#focusedRow()?.id);
    const isSeen = focused !== undefined && placeOf(focused) >= edge && placeOf(focused) < innerHeight;
    const index = isSeen ? focused : Math.ceil((edge - top) / this.#height);
    return (isSeen || index > 0) && this.#lines[index] ? { id: this.#lines[index].id, place: placeOf(index) } : null;
  }

  #restore(anchor) {
    const index = this.#at.get(anchor?.id);
    if (index === undefined) return;
    const moved = this.#top() + index * this.#height - anchor.place;
    if (Math.abs(moved) >= 1) window.scrollBy({ top: moved, behavior: 'instant' });
  }

  #top() {
    return this.#body.getBoundingClientRect().top;
  }

  /** The lower edge of what sticks to the top of the window. */
  #edge() {
    return this.#root.firstElementChild.getBoundingClientRect().bottom;
  }

  #visible() {
    const above = -this.#top() / this.#height;
    const first = Math.max(0, Math.floor(above) - SPARE);
    const last = Math.min(this.#lines.length, Math.ceil(above + innerHeight / this.#height) + SPARE);
    return [first, last];
  }

  #render() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (!this.#body.isConnected) return;
    const [first, last] = this.#visible();
    if (last >= this.#lines.length - SPARE) this.#source.onEnd();
    const wanted = new Set();
    for (let index = first; index < last; index += 1) wanted.add(this.#lines[index].id);
    const held = this.#focusedRow()?.id; // a row keeps the focus outside of the window too
    if (held !== undefined && this.#at.has(held)) wanted.add(held);
    if ([...wanted].some((id) => !this.#rows.has(id))) {
      clearTimeout(this.#settling);
      this.#settling = setTimeout(() => this.#settle(), SETTLE_MS);
    }
    const free = [];
    for (const [id, row] of this.#rows) {
      if (wanted.has(id)) continue;
      this.#rows.delete(id);
      free.push(row);
    }
    const tabbable = wanted.has(this.#active) ? this.#active : this.#lines[first]?.id;
    for (const id of wanted) {
      const index = this.#at.get(id);
      const line = this.#lines[index];
      const row = this.#rowOf(line, free);
      row.place(index, this.#height);
      row.show(this.#source.entryOf(line), line, this.#source.marksOf(id));
      row.tabbable = id === tabbable;
    }
    for (const row of free) row.element.remove();
  }

  /** @param {Row[]} free rows that are no longer visible: moving one is cheaper than a new one */
  #rowOf(line, free) {
    const known = this.#rows.get(line.id);
    if (known) return known;
    let row = free.pop();
    if (!row) {
      row = new Row();
      row.base = this.#source.base ?? '';
      this.#body.append(row.element);
    }
    row.become(line);
    this.#rows.set(line.id, row);
    return row;
  }

  /** Puts the rows in order around the one with the focus. Until then, only their places on the screen are in order. */
  #settle() {
    const rows = [...this.#rows.values()].sort((a, b) => a.index - b.index);
    if (rows.every(({ element }, at) => element === this.#body.children[at])) return;
    const focused = this.#focusedRow();
    for (const row of rows) {
      if (row === focused) continue; // a moved element would lose the focus, or scroll the page
      if (focused && row.index < focused.index) focused.element.before(row.element);
      else this.#body.append(row.element);
    }
  }

  #focusedRow() {
    const focused = this.#root.getRootNode().activeElement;
    return this.#idOf(focused) === null ? null : this.#rows.get(this.#idOf(focused));
  }

  #idOf(node) {
    return node?.closest?.('[role=row][data-id]')?.dataset.id ?? null;
  }

  #focused(target) {
    const id = this.#idOf(target);
    if (id === null || id === this.#active) return;
    this.#active = id;
    this.update();
  }

  #clicked(event) {
    const id = this.#idOf(event.target);
    if (id === null) return;
    const line = this.#lines[this.#at.get(id)];
    const box = event.target.closest('[type=checkbox]');
    const button = event.target.closest('button[data-action]');
    if (box) this.#actions.select(id, event.shiftKey ? 'range' : 'toggle');
    else if (button?.dataset.action === 'toggle') this.#actions.unfold(id, !line.open);
    else if (button) this.#actions.act(button.dataset.action, this.#source.entryOf(line), button);
    else if (line.members && !event.target.closest('a')) this.#actions.unfold(id, !line.open);
  }

  #pressed(event) {
    const { key, target } = event;
    const index = this.#at.get(this.#idOf(target));
    if (index === undefined || event.altKey || event.metaKey) return;
    const page = Math.max(1, Math.floor((innerHeight - this.#edge()) / this.#height) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    const line = this.#lines[index];
    if (event.ctrlKey) {
      if (key !== 'a') return;
      this.#actions.select(null, 'all');
    } else if (key in steps) {
      const next = Math.min(this.#lines.length - 1, Math.max(0, index + steps[key]));
      if (event.shiftKey) {
        this.#actions.select(line.id, 'anchor');
        this.#actions.select(this.#lines[next].id, 'range');
      }
      this.#goTo(next);
    } else if (key === 'ArrowRight' && line.members) {
      this.#actions.unfold(line.id, true);
    } else if (key === 'ArrowLeft' && (line.open || line.level)) {
      const parent = line.level ? this.#lines.findLastIndex(({ members }, at) => members && at < index) : index;
      this.#actions.unfold(this.#lines[parent].id, false);
      this.#goTo(parent);
    } else if (key === ' ' && !target.matches('button, input')) {
      this.#actions.select(line.id, 'toggle');
    } else if (key === 'Enter' && target.matches('[role=row]')) {
      target.querySelector('.row-name a').click();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Focuses a line, which may be outside of the window. */
  #goTo(index) {
    const line = this.#lines[index];
    if (!line) return;
    this.#active = line.id;
    const top = this.#top() + index * this.#height;
    const [edge, end] = [this.#edge(), innerHeight - this.#height];
    if (top < edge) window.scrollBy({ top: top - edge, behavior: 'instant' });
    else if (top > end) window.scrollBy({ top: top - end + 8, behavior: 'instant' });
    this.#render();
    this.#rows.get(line.id)?.element.focus({ preventScroll: true });
  }
}

function header() {
  const titles = {
    pick: t('Selection'), name: t('Name'), state: t('State'), bar: t('Progress'), step: t('Step'), rate: t('Rate'),
    left: t('Time left'), spent: t('Elapsed'), host: t('Host'), actions: t('Actions'),
  };
  const cells = Object.entries(titles).map(([name, title]) => {
    const isSeen = name !== 'pick' && name !== 'actions';
    return element('span', { class: `row-${name}`, role: 'columnheader' }, element('span', { class: isSeen ? '' : 'out-of-sight' }, title));
  });
  return element('div', { class: 'rows-head', role: 'rowgroup' }, element('div', { class: 'row', role: 'row', 'aria-rowindex': 1 }, ...cells));
}
