/**
 * `<progressd-log job="ID" url="https://host:8080/" token="…">`: the log of a job, live.
 *
 * The lines are in blocks. Only blocks near the visible part have elements, so that 100,000 lines stay smooth.
 * Events: `refused` if the log may not be read, `lines` when lines have arrived.
 */

import { parts, plain, styleAfter } from './ansi.js';
import { element, setText } from './dom.js';
import { size } from './format.js';
import { jobPath } from './job.js';
import { sheet } from './log-style.js';
import { language, languagesOf, loadLanguage, t } from './text.js';
import { watch } from './progressd.js';

/** The daemon that the module comes from. */
const ROOT = import.meta.url.replace(/static\/.*$/, '');

const first = document.querySelector('progressd-log') ?? document.documentElement;
await loadLanguage(languagesOf(first)).catch(() => {}); // the server is away: English

const BLOCK = 50; // lines
const FIRST_LINES = 1000;
const MORE_LINES = 10_000;
const NEAR_PX = 800; // blocks at this distance have elements
const EARLIER_PX = 600; // earlier lines are loaded at this distance from the top
const END_PX = 24; // at this distance from the end, the view follows
const LONGEST = 65_536; // characters of a line that arrives in parts
const MAX_MATCHES = 100_000;
const TYPING_MS = 120; // the search begins this long after the last key

/**
 * @typedef {object} Line
 * @property {string} t time, RFC 3339
 * @property {'o' | 'e' | 'n'} s standard output, standard error, or a note
 * @property {string} text with escape sequences
 * @property {boolean} [partial] whether the rest of the line follows
 * @property {import('./ansi.js').Style | null} [style] at the beginning of the line
 * @property {number} [gap] bytes that are missing here, instead of a text
 *
 * @typedef {{lines: Line[], root: HTMLElement, filled: boolean}} Block
 */

export class ProgressdLog extends HTMLElement {
  static observedAttributes = ['job', 'url', 'token', 'key'];

  /** The name of the job, for screen readers and for the name of the downloaded file. */
  heading = '';

  #root = this.attachShadow({ mode: 'open' });
  #parts = {};
  #source = null;
  #leaving = new AbortController();

  /** @type {Block[]} */
  #blocks = [];
  #blockOf = new WeakMap();
  #begin = 0; // the offset of the first line
  #count = 0;
  #last = { o: null, e: null, n: null }; // the style at the end, by stream
  #arrived = []; // parts of the log that are not shown yet
  #drawing = 0;
  #loading = false;
  #ended = false;

  #following = true;
  #top = 0; // the last position, to notice that the user scrolls up
  #pinned = new Set(); // the blocks in which the selection begins and ends
  #near = new IntersectionObserver((entries) => this.#arrange(entries), { root: null });

  #query = null; // a regular expression
  /** @type {{block: Block, line: Line, at: number, length: number}[]} */
  #matches = [];
  #match = -1;

  connectedCallback() {
    if (!this.#parts.scroller) this.#build();
    document.addEventListener('selectionchange', this.#pin);
    if (this.hasAttribute('job') && !this.#source) this.#openFromAttributes();
  }

  disconnectedCallback() {
    document.removeEventListener('selectionchange', this.#pin);
    this.close();
  }

  attributeChangedCallback() {
    if (this.isConnected && this.#parts.scroller && this.hasAttribute('job')) this.#openFromAttributes();
  }

  #openFromAttributes() {
    this.open({
      job: this.getAttribute('job'),
      url: this.getAttribute('url') ?? ROOT,
      token: this.getAttribute('token') ?? undefined,
      key: this.getAttribute('key') ?? undefined,
    });
  }

  /**
   * Shows a log, from its last lines on.
   * @param {{url: string, job: string, token?: string, key?: string}} source
   */
  async open(source) {
    this.close();
    this.#source = { ...source, url: source.url.replace(/([^/])$/, '$1/') };
    const { signal } = (this.#leaving = new AbortController());
    this.#tell(t('Loading…'));
    const end = await this.#loadLast(signal);
    if (end === null || signal.aborted) return;
    this.#tellCount();
    if (this.#query) this.#loadAll(); // it was typed while the log was loading
    const { url, job, token, key } = this.#source;
    try {
      for await (const { type, data } of watch(url, { log: job, token, key, since: end, signal })) {
        if (type === 'log') this.#receive(data);
      }
    } catch {
      // `watch` retries by itself. An error means that the log is not available, for example after a deletion.
    }
    if (signal.aborted) return;
    this.#ended = true;
    this.#drawSoon();
  }

  /** Forgets the log. */
  close() {
    this.#leaving.abort();
    cancelAnimationFrame(this.#drawing);
    clearTimeout(this.#drawing);
    this.#source = null;
    this.#near.disconnect();
    for (const { root } of this.#blocks) root.remove();
    Object.assign(this.#last, { o: null, e: null, n: null });
    this.#blocks = [];
    this.#arrived = [];
    this.#pinned.clear();
    this.#count = this.#begin = this.#drawing = 0;
    this.#ended = this.#loading = false;
    this.#following = true;
    if (this.#parts.scroller) this.#findAll();
  }

  /** @param {'o' | 'e'} stream @param {number} most @returns {string[]} the last lines of a stream, as shown */
  lastLines(stream, most) {
    const found = [];
    for (const { lines } of this.#blocks.toReversed()) {
      for (const { s, text, gap } of lines.toReversed()) {
        if (s === stream && gap === undefined && plain(text).trim()) found.unshift(plain(text));
        if (found.length === most) return found;
      }
    }
    return found;
  }

  /** Moves the focus to the field that searches the log. */
  focusFind() {
    this.#parts.find.focus();
    this.#parts.find.select();
  }

  /** Follows the end of the log, or stops following it. */
  toggleFollow() {
    this.#follow(!this.#following);
    return true;
  }

  /* Requests */

  async #request(path, method = 'GET') {
    const { url, token, key } = this.#source;
    const target = new URL(path, url);
    if (token) target.searchParams.set('token', token);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await fetch(target, { method, headers, signal: this.#leaving.signal });
    if (!response.ok) throw Object.assign(new Error(`HTTP status ${response.status}`), { status: response.status });
    return response.json();
  }

  #path = (rest) => jobPath(this.#source.job, `/${rest}`);

  /** @returns {Promise<number | null>} the offset of the end; null if the log may not be read */
  async #loadLast(signal) {
    for (let failures = 1; !signal.aborted; failures += 1) {
      try {
        const { begin, end, parts: loaded } = await this.#request(this.#path(`log/lines?limit=${FIRST_LINES}`));
        this.#begin = begin;
        for (const part of loaded) this.#receive(part);
        return end;
      } catch (error) {
        if (signal.aborted) return null;
        if (error.status && error.status < 500 && error.status !== 429) {
          this.#tell(t('The log is not available.'));
          this.dispatchEvent(new CustomEvent('refused', { detail: { status: error.status } }));
          return null;
        }
        if (failures > 2) this.#tell(await this.#whyUnreachable());
        await new Promise((resume) => setTimeout(resume, Math.min(15_000, 500 * 2 ** failures)));
      }
    }
    return null;
  }

  async #whyUnreachable() {
    const { url } = this.#source;
    try {
      if (new URL(url).origin !== location.origin) await (await import('./progressd-fallback.js')).explain(new URL(url));
    } catch (error) {
      if (error.code) return (await import('./progressd-element.js')).sentenceFor(error, url);
    }
    return t('The server cannot be reached. The log appears when it is back.');
  }

  /** Loads lines before the first one. */
  async #loadEarlier() {
    if (this.#loading || !this.#begin || !this.#source) return;
    const { signal } = this.#leaving;
    this.#loading = true;
    this.#tell(t('Loading earlier lines…'));
    try {
      const { begin, parts: loaded } = await this.#request(this.#path(`log/lines?before=${this.#begin}&limit=${MORE_LINES}`));
      this.#begin = begin < this.#begin ? begin : 0;
      this.#prepend(loaded);
    } catch {
      if (!signal.aborted) await new Promise((resume) => setTimeout(resume, 2000)); // the next scrolling tries again
    } finally {
      if (!signal.aborted) {
        this.#loading = false;
        this.#tellCount();
      }
    }
  }

  /** Loads all lines, for a search. */
  async #loadAll() {
    const { signal } = this.#leaving;
    while (this.#begin && !signal.aborted && this.#query) {
      const before = this.#begin;
      await (this.#loading ? new Promise((resume) => setTimeout(resume, 100)) : this.#loadEarlier());
      if (this.#match < 0) this.#turn(1);
      if (!this.#loading && this.#begin === before) return;
    }
  }

  async #download(event) {
    const link = event.currentTarget;
    if (!this.#source?.key) return;
    event.preventDefault();
    try {
      const { token } = await this.#request(this.#path('token?log=true'), 'POST');
      const signed = element('a', { href: this.#downloadUrl(token), download: link.download });
      signed.click();
    } catch {
      this.#tell(t('The server cannot be reached. Try again when it is back.'));
    }
  }

  #downloadUrl(token) {
    const target = new URL(this.#path('log'), this.#source.url);
    if (token) target.searchParams.set('token', token);
    return target.href;
  }

  /* Lines */

  #receive(part) {
    this.#arrived.push(part);
    this.#drawSoon();
  }

  /** A burst of messages is drawn once. A hidden page gets no frames, but must not hold lines back forever. */
  #drawSoon() {
    this.#drawing ||= document.hidden ? setTimeout(() => this.#draw(), 250) : requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#drawing = 0;
    const parts = this.#arrived.splice(0);
    const changed = new Set();
    this.#keepPlace(() => {
      for (const part of parts) this.#append(part, changed);
      if (this.#following) for (const block of this.#blocks.slice(-2)) this.#fill(block);
    });
    if (this.#query && changed.size) this.#findIn(changed);
    if (!this.#following) this.#offerNewest();
    this.#tellCount();
    if (parts.length) this.dispatchEvent(new CustomEvent('lines'));
  }

  #append({ lines, missed = 0 }, changed) {
    if (missed) this.#add({ t: '', s: 'n', text: '', gap: missed }, changed);
    for (const line of lines) {
      const before = this.#blocks.at(-1)?.lines.at(-1);
      if (before?.partial && before.s === line.s && before.text.length < LONGEST) this.#extend(before, line, changed);
      else this.#add({ ...line, style: this.#last[line.s] }, changed);
      this.#last[line.s] = styleAfter(line.text, this.#last[line.s]);
    }
  }

  #add(line, changed) {
    let block = this.#blocks.at(-1);
    if (!block || block.lines.length >= BLOCK) {
      block = this.#newBlock([]);
      this.#blocks.push(block);
      this.#parts.lines.append(block.root);
      this.#near.observe(block.root);
    }
    block.lines.push(line);
    this.#count += 1;
    block.root.style.setProperty('--n', block.lines.length);
    if (block.filled) block.root.append(this.#lineElement(block, line));
    changed.add(block);
  }

  #extend(line, { text, partial }, changed) {
    const block = this.#blocks.at(-1);
    line.text += text;
    line.partial = partial;
    if (block.filled) block.root.lastElementChild.replaceWith(this.#lineElement(block, line));
    changed.add(block);
  }

  #prepend(parts) {
    const lines = [];
    const last = { o: null, e: null, n: null };
    for (const part of parts) {
      if (part.missed) lines.push({ t: '', s: 'n', text: '', gap: part.missed });
      for (const line of part.lines) {
        const before = lines.at(-1);
        if (before?.partial && before.s === line.s && before.text.length < LONGEST) {
          before.text += line.text;
          before.partial = line.partial;
        } else {
          lines.push({ ...line, style: last[line.s] });
        }
        last[line.s] = styleAfter(line.text, last[line.s]);
      }
    }
    const blocks = [];
    for (let end = lines.length; end > 0; end -= BLOCK) blocks.unshift(this.#newBlock(lines.slice(Math.max(0, end - BLOCK), end)));
    this.#keepPlace(() => {
      this.#blocks.unshift(...blocks);
      this.#parts.lines.prepend(...blocks.map(({ root }) => root));
      for (const { root } of blocks) this.#near.observe(root);
      for (const block of blocks.slice(-1)) this.#fill(block);
    });
    this.#count += lines.length;
    if (this.#query) this.#findAll();
  }

  #newBlock(lines) {
    const root = element('div', { class: 'block' });
    root.style.setProperty('--n', lines.length);
    const block = { lines, root, filled: false };
    this.#blockOf.set(root, block);
    return block;
  }

  /* What is visible */

  #arrange(entries) {
    const change = () => {
      for (const { target, isIntersecting, boundingClientRect: box } of entries) {
        const block = this.#blockOf.get(target);
        if (isIntersecting) this.#fill(block);
        else this.#empty(block, box.height);
      }
    };
    if (this.#wraps) this.#keepPlace(change);
    else change(); // the heights of blocks are known
  }

  get #wraps() {
    return this.#parts.scroller.hasAttribute('data-wrap');
  }

  #fill(block) {
    if (block.filled) return;
    block.filled = true;
    block.root.style.height = '';
    block.root.replaceChildren(...block.lines.map((line) => this.#lineElement(block, line)));
  }

  #empty(block, height) {
    if (!block.filled || this.#pinned.has(block) || (this.#following && this.#blocks.indexOf(block) >= this.#blocks.length - 2)) return;
    if (this.#wraps) block.root.style.height = `${height}px`;
    block.filled = false;
    block.root.replaceChildren();
  }

  /** Changes blocks, and keeps the visible lines where they are, or follows the end. */
  #keepPlace(change) {
    const { scroller } = this.#parts;
    if (this.#following) {
      change();
      this.#toEnd();
      return;
    }
    const edge = scroller.getBoundingClientRect().top;
    const anchor = this.#blocks[this.#firstBelow(edge)]?.root;
    const before = anchor?.getBoundingClientRect().top;
    change();
    const moved = anchor ? anchor.getBoundingClientRect().top - before : 0;
    if (moved) {
      scroller.scrollTop += moved;
      this.#top = scroller.scrollTop;
    }
  }

  /** The number of the first block that ends below a position in the window. */
  #firstBelow(edge) {
    let [low, high] = [0, this.#blocks.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#blocks[middle].root.getBoundingClientRect().bottom > edge) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #toEnd() {
    const { scroller } = this.#parts;
    scroller.scrollTop = scroller.scrollHeight;
    this.#top = scroller.scrollTop;
  }

  #scrolled() {
    const { scroller } = this.#parts;
    const { scrollTop, scrollHeight, clientHeight } = scroller;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < END_PX;
    if (isAtEnd) this.#follow(true, false);
    else if (scrollTop < this.#top) this.#follow(false, false);
    this.#top = scrollTop;
    if (scrollTop < EARLIER_PX && !this.#following) this.#loadEarlier();
  }

  #follow(following, move = true) {
    if (following !== this.#following) {
      this.#following = following;
      const { follow, newest } = this.#parts;
      follow.ariaPressed = String(following);
      if (following && this.#root.activeElement === newest) this.#parts.scroller.focus();
    }
    this.#offerNewest();
    if (following && move) {
      for (const block of this.#blocks.slice(-2)) this.#fill(block);
      this.#toEnd();
    }
  }

  #offerNewest() {
    const { scroller, newest } = this.#parts;
    newest.hidden = this.#following || scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < END_PX;
  }

  /* One line */

  #lineElement(block, line) {
    if (line.gap !== undefined) {
      return element('div', { class: 'line gap' }, t('{size} of the log are missing here', { size: size(line.gap) }));
    }
    const text = element('span', { class: 'text' }, ...this.#styled(block, line));
    const root = element('div', { class: 'line' }, text);
    if (line.s !== 'o') root.dataset.s = line.s;
    if (this.#parts.times.ariaPressed === 'true') root.prepend(element('time', { dateTime: line.t, title: line.t }, clock(line.t)));
    return root;
  }

  #styled(block, line) {
    const pieces = parts(line.text, line.style ?? null);
    if (!this.#query) return pieces.map(([text, style]) => (style ? styledSpan(text, style) : text));
    const found = [...plain(line.text).matchAll(this.#query)].filter(([text]) => text);
    const current = this.#matches[this.#match];
    const nodes = [];
    let at = 0;
    let next = 0;
    for (const [text, style] of pieces) {
      let rest = text;
      while (rest) {
        const match = found[next];
        const inside = match && at >= match.index;
        const end = match ? (inside ? match.index + match[0].length : match.index) : Infinity;
        const piece = rest.slice(0, end - at);
        let node = style ? styledSpan(piece, style) : piece;
        if (inside) {
          const isCurrent = current?.line === line && current.at === match.index;
          node = element('mark', isCurrent ? { class: 'current' } : {}, node);
        }
        nodes.push(node);
        at += piece.length;
        rest = rest.slice(piece.length);
        if (inside && at >= end) next += 1;
      }
    }
    return nodes;
  }

  #redraw(block) {
    if (!block?.filled) return;
    block.filled = false;
    this.#fill(block);
  }

  /* Search */

  #search() {
    const { find } = this.#parts;
    const text = find.value;
    this.#query = text ? new RegExp(text.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&'), 'giu') : null;
    this.#findAll();
    if (this.#query) {
      this.#match = this.#firstVisibleMatch();
      if (this.#match >= 0) this.#show();
      this.#loadAll();
    }
    this.#tellMatches();
  }

  #findAll() {
    const current = this.#matches[this.#match];
    this.#matches = [];
    if (this.#query) this.#findIn(new Set(this.#blocks), false);
    this.#match = current ? this.#matches.findIndex(({ line, at }) => line === current.line && at === current.at) : -1;
    for (const block of this.#blocks) this.#redraw(block);
    this.#tellMatches();
  }

  /** Searches blocks at the end again, because they have changed. */
  #findIn(blocks, isAgain = true) {
    if (isAgain) while (this.#matches.length && blocks.has(this.#matches.at(-1).block)) this.#matches.pop();
    for (const block of blocks) {
      for (const line of block.lines) {
        if (line.gap !== undefined || this.#matches.length >= MAX_MATCHES) continue;
        for (const { 0: text, index } of plain(line.text).matchAll(this.#query)) {
          if (text) this.#matches.push({ block, line, at: index, length: text.length });
        }
      }
    }
    if (isAgain) this.#tellMatches();
  }

  #firstVisibleMatch() {
    if (!this.#matches.length) return -1;
    if (this.#following) return this.#matches.length - 1;
    const first = this.#firstBelow(this.#parts.scroller.getBoundingClientRect().top);
    const later = new Set(this.#blocks.slice(first));
    const found = this.#matches.findIndex(({ block }) => later.has(block));
    return found >= 0 ? found : this.#matches.length - 1;
  }

  #turn(step) {
    const { length } = this.#matches;
    if (!length) return;
    this.#match = this.#match < 0 ? this.#firstVisibleMatch() : (this.#match + step + length) % length;
    this.#show();
    this.#tellMatches();
  }

  /** Scrolls to the current match. */
  #show() {
    const { block, line } = this.#matches[this.#match];
    const { scroller } = this.#parts;
    this.#follow(false);
    const before = this.#root.querySelector('mark.current')?.closest('.block');
    if (before) this.#redraw(this.#blockOf.get(before));
    this.#redraw(block);
    this.#fill(block);
    const row = block.root.children[block.lines.indexOf(line)];
    const [view, box] = [scroller.getBoundingClientRect(), row.getBoundingClientRect()];
    if (box.top < view.top + 8 || box.bottom > view.bottom - 8) {
      scroller.scrollTop += box.top - view.top - (scroller.clientHeight - box.height) / 2;
    }
    const mark = row.querySelector('mark.current')?.getBoundingClientRect();
    if (mark && (mark.left < view.left || mark.right > view.right)) scroller.scrollLeft += mark.left - view.left - scroller.clientWidth / 3;
    this.#top = scroller.scrollTop;
    this.#offerNewest();
  }

  #tellMatches() {
    const { matches, previous, next } = this.#parts;
    const total = this.#matches.length;
    const n = (value) => new Intl.NumberFormat(language).format(value);
    let text = '';
    if (this.#query) text = total ? t('{n} of {total}', { n: n(this.#match + 1), total: n(total) }) : t('Nothing found');
    setText(matches, text);
    previous.disabled = next.disabled = !total;
  }

  /* Copying: from the lines, because blocks in the middle of a selection may have no elements. */

  #selection() {
    const selection = document.getSelection();
    const range = selection?.getComposedRanges?.({ shadowRoots: [this.#root] })[0] ?? null;
    if (range) return range;
    const own = this.#root.getSelection?.();
    return own?.rangeCount ? own.getRangeAt(0) : null;
  }

  /** Keeps the blocks in which the selection begins and ends, so that it stays while they are not visible. */
  #pin = () => {
    const range = this.#selection();
    const blocks = [range?.startContainer, range?.endContainer].map((node) => this.#blockAround(node));
    this.#pinned = new Set(range?.collapsed === false ? blocks.filter(Boolean) : []);
  };

  #blockAround(node) {
    const root = (node instanceof Element ? node : node?.parentElement)?.closest?.('.block');
    return root ? this.#blockOf.get(root) : undefined;
  }

  #copy(event) {
    const text = this.selectedText();
    if (text === null) return;
    event.clipboardData.setData('text/plain', text);
    event.preventDefault();
  }

  /** @returns {string | null} the selected text; null if the selection is not within the lines */
  selectedText() {
    const range = this.#selection();
    if (!range || range.collapsed) return null;
    const [from, to] = [this.#placeOf(range.startContainer, range.startOffset), this.#placeOf(range.endContainer, range.endOffset)];
    if (!from || !to) return null;
    const found = [];
    for (let number = from.block; number <= to.block; number += 1) {
      const { lines } = this.#blocks[number];
      const first = number === from.block ? from.line : 0;
      const last = number === to.block ? to.line : lines.length - 1;
      for (let place = first; place <= last; place += 1) {
        const whole = lines[place].gap === undefined ? plain(lines[place].text) : '';
        const isLast = number === to.block && place === last;
        const isFirst = number === from.block && place === first;
        found.push(whole.slice(isFirst ? from.at : 0, isLast ? to.at : undefined));
      }
    }
    return found.join('\n');
  }

  /** The line and the character of a point of the document. */
  #placeOf(node, offset) {
    if (node === this.#parts.lines || node === this.#parts.scroller) {
      const isStart = offset === 0 || node === this.#parts.scroller && offset <= 1;
      if (isStart) return this.#blocks.length ? { block: 0, line: 0, at: 0 } : null;
      const block = node === this.#parts.lines ? Math.min(offset, this.#blocks.length) - 1 : this.#blocks.length - 1;
      return { block, line: this.#blocks[block].lines.length - 1, at: Infinity };
    }
    const around = this.#blockAround(node);
    if (!around) return null;
    const block = this.#blocks.indexOf(around);
    if (node === around.root) {
      const line = Math.min(offset, around.lines.length - 1);
      return { block, line, at: offset > line ? Infinity : 0 };
    }
    const row = (node instanceof Element ? node : node.parentElement).closest('.line');
    const line = [...around.root.children].indexOf(row);
    const text = row?.querySelector('.text');
    if (!text) return { block, line: Math.max(0, line), at: 0 };
    if (node !== text && !text.contains(node)) return { block, line, at: node === row && offset > 1 ? Infinity : 0 };
    const before = document.createRange();
    before.setStart(text, 0);
    before.setEnd(node, offset);
    return { block, line, at: before.toString().length };
  }

  #selectAll() {
    const range = document.createRange();
    range.selectNodeContents(this.#parts.lines);
    document.getSelection().removeAllRanges();
    document.getSelection().addRange(range);
  }

  /* Words */

  #tell(text) {
    setText(this.#parts.status, text);
  }

  #tellCount() {
    if (this.#loading) return;
    const n = new Intl.NumberFormat(language).format(this.#count);
    const isWhole = !this.#begin;
    const words = isWhole ? t('{count} lines', { count: n }) : t('The last {count} lines', { count: n });
    if (this.#count) this.#tell(this.#count === 1 && isWhole ? t('1 line') : words);
    else this.#tell(this.#ended ? t('The job wrote nothing.') : t('No output yet.'));
    const link = this.#parts.download;
    link.hidden = !this.#source || !this.#count;
    if (this.#source) {
      link.href = this.#downloadUrl(this.#source.token);
      link.download = `${(this.heading || this.#source.job).replace(/[^\p{L}\p{N}._ -]+/gu, '_').slice(0, 80)}.log`;
    }
    this.#parts.scroller.ariaLabel = this.heading ? t('Log of {name}', { name: this.heading }) : t('Log');
  }

  /* Construction */

  #build() {
    this.#root.adoptedStyleSheets = [sheet];
    const button = (label, properties, act) => {
      const made = element('button', { type: 'button', textContent: label, ...properties });
      made.addEventListener('click', act);
      return made;
    };
    const toggle = (label, isOn, act) => {
      const made = button(label, { ariaPressed: String(isOn) }, () => {
        made.ariaPressed = String(made.ariaPressed !== 'true');
        act(made.ariaPressed === 'true');
      });
      return made;
    };
    const find = element('input', { type: 'search', part: 'find', placeholder: t('Find'), ariaLabel: t('Find in the log'), autocomplete: 'off', spellcheck: false });
    find.setAttribute('part', 'find');
    const matches = element('span', { class: 'matches', role: 'status' });
    const previous = button('↑', { ariaLabel: t('Previous match'), title: t('Previous match'), disabled: true }, () => this.#turn(-1));
    const next = button('↓', { ariaLabel: t('Next match'), title: t('Next match'), disabled: true }, () => this.#turn(1));
    const times = toggle(t('Times'), false, () => this.#keepPlace(() => {
      for (const block of this.#blocks) this.#redraw(block);
    }));
    const wrap = toggle(t('Wrap'), matchMedia('(max-width: 40rem)').matches, (isOn) => this.#wrap(isOn));
    const follow = toggle(t('Follow'), true, (isOn) => this.#follow(isOn));
    const download = element('a', { hidden: true, class: 'tool' }, t('Download'));
    download.addEventListener('click', (event) => this.#download(event));
    const lines = element('div', { class: 'lines' });
    const scroller = element('div', { class: 'scroller', tabIndex: 0, role: 'log', part: 'lines' }, lines);
    scroller.setAttribute('part', 'lines');
    scroller.setAttribute('aria-live', 'off');
    const newest = button(t('Jump to the newest'), { hidden: true, className: 'newest' }, () => this.#follow(true));
    const status = element('p', { class: 'status' });
    this.#parts = { find, matches, previous, next, times, wrap, follow, download, scroller, lines, newest, status };
    this.#root.append(
      element('div', { class: 'tools', role: 'group', ariaLabel: t('Log') },
        element('div', { class: 'finder' }, find, matches, previous, next),
        element('div', { class: 'switches' }, times, wrap, follow, download)),
      element('div', { class: 'view' }, scroller, newest),
      status,
    );
    this.#wrap(wrap.ariaPressed === 'true');
    this.#listen();
    this.#near = new IntersectionObserver((entries) => this.#arrange(entries), { root: scroller, rootMargin: `${NEAR_PX}px 0px` });
    new ResizeObserver(() => this.#resized()).observe(scroller);
  }

  #listen() {
    const { find, scroller } = this.#parts;
    let typing = 0;
    const search = () => {
      clearTimeout(typing);
      typing = 0;
      this.#search();
    };
    find.addEventListener('input', () => {
      clearTimeout(typing);
      typing = setTimeout(search, TYPING_MS);
    });
    find.addEventListener('keydown', (event) => {
      if (event.isComposing) return;
      if (event.key === 'Enter' && typing) search();
      else if (event.key === 'Enter') this.#turn(event.shiftKey ? -1 : 1);
      else if (event.key === 'Escape' && !find.value) scroller.focus();
      else if (event.key === 'Escape') {
        find.value = '';
        search();
      } else return;
      event.preventDefault();
      event.stopPropagation();
    });
    scroller.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    this.#root.addEventListener('keydown', (event) => this.#pressed(event));
    this.#root.addEventListener('copy', (event) => this.#copy(event));
  }

  #pressed(event) {
    const command = event.ctrlKey || event.metaKey;
    const isInLines = event.target === this.#parts.scroller;
    if (command && event.key === 'f') this.focusFind();
    else if (event.key === 'F3' || (command && event.key.toLowerCase() === 'g')) this.#turn(event.shiftKey ? -1 : 1);
    else if (command && event.key === 'a' && isInLines) this.#selectAll();
    else if (event.key === 'End' && isInLines) this.#follow(true);
    else return;
    event.preventDefault();
  }

  #wrap(isOn) {
    this.#keepPlace(() => {
      this.#parts.scroller.toggleAttribute('data-wrap', isOn);
      for (const { root } of this.#blocks) root.style.height = '';
    });
  }

  #width = 0;

  #resized() {
    const { scroller } = this.#parts;
    if (scroller.clientWidth !== this.#width && this.#wraps) {
      for (const { root } of this.#blocks) root.style.height = '';
    }
    this.#width = scroller.clientWidth;
    if (this.#following) this.#toEnd();
  }
}

const clock = (iso) => {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? '' : hours.format(date);
};
const hours = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3 });

/** @param {string} text @param {import('./ansi.js').Style} style */
function styledSpan(text, style) {
  const { fg, bg, ...flags } = style;
  const names = Object.keys(flags);
  const span = element('span', {}, text);
  if (typeof fg === 'number') names.push(`f${fg}`);
  if (typeof bg === 'number' && !style.inverse) names.push(`b${bg}`);
  if (typeof fg === 'string' && !style.inverse) {
    names.push(typeof bg === 'string' ? 'exact' : 'own');
    span.style.setProperty('--front', fg);
  }
  const ground = style.inverse ? fg : bg;
  if (typeof ground === 'string') {
    names.push('ground');
    span.style.setProperty('--back', ground);
    if (typeof fg !== 'string' || style.inverse) span.style.color = isDark(ground) ? '#fff' : '#000';
  }
  span.className = names.join(' ');
  return span;
}

function isDark(rgb) {
  const [r, g, b] = rgb.match(/\d+/g).map(Number);
  return 0.299 * r + 0.587 * g + 0.114 * b < 140;
}

customElements.define('progressd-log', ProgressdLog);
