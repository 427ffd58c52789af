/** `<progressd-jobs>`: the list of jobs as rows, live, on any page. See docs/embedding.md. */

import { Batches } from './batches.js';
import { COLORS } from './colors.js';
import { Jobs } from './jobs.js';
import { getJson } from './progressd.js';
import { ProgressdElement, sentenceFor } from './progressd-element.js';
import { filtersOf, finishedOf, isFiltered, parseQuery } from './query.js';
import { Rows } from './rows.js';
import { t } from './text.js';
import { View } from './view.js';

const PAGE = 1000;
const MAX_UNFINISHED = 20_000;
const FINISHED = 100;
const INTERVAL = 0.5;

const style = new CSSStyleSheet();
style.replaceSync(await (await fetch(new URL('rows.css', import.meta.url))).text());
const own = new CSSStyleSheet();
own.replaceSync(`
:host {
  --ink: var(--text);
  --edge: var(--idle);
  --caution: var(--stalled);
  --sheet: var(--progressd-sheet, ${COLORS.sheet});
  --paper: var(--sheet);
  --rule: var(--progressd-rule, ${COLORS.rule});
}
* { box-sizing: border-box; }
.out-of-sight { position: absolute; clip-path: inset(50%); white-space: nowrap; }
.empty { padding: 1em; color: var(--soft); }
`);

const CONTENT = `
<div class="list" part="card" data-part="card">
  <div class="rows" part="rows" data-part="rows" role="treegrid"></div>
  <p class="empty" part="empty" data-part="empty" hidden></p>
  <p class="message" part="message" data-part="message" role="status" hidden></p>
</div>`;

const NOTHING = Object.freeze({});
const NO_UPLOADS = { newestFirst: () => [] };

export class ProgressdJobs extends ProgressdElement {
  static observedAttributes = this.attributes('query');

  #jobs = new Jobs((...change) => {
    this.#view.changed(...change);
    this.redraw();
  });
  #view = new View(this.#jobs, NO_UPLOADS);
  #rows = null;
  #query = parseQuery('');
  #log = null; // the messages since the first page was requested
  #loading = new AbortController();
  #isLoaded = false;
  #clock = 0;
  #due = 0;

  constructor() {
    super(CONTENT, own, style);
    this.#view.show(this.#query);
  }

  /** The jobs of the list, as in `GET /api/jobs`, in no order. Never changed in place. */
  get state() {
    return this.#jobs.size ? [...this.#jobs.all()] : null;
  }

  /** `query`: the same text as in the URL of the daemon's page, such as `tab=running&q=backup&host=db1`. */
  begin() {
    this.#query = parseQuery(this.getAttribute('query') ?? '');
    this.#jobs.clear();
    this.#isLoaded = false;
    this.#view.show(this.#query);
    this.#clock ||= setInterval(() => this.#rows?.tick(), 1000);
    return { interval: INTERVAL };
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.#loading.abort();
    clearInterval(this.#clock);
    clearTimeout(this.#due);
    this.#clock = 0;
    this.#rows?.close();
    this.#rows = null;
  }

  /** The stream has everything from now on, and the pages have everything before. */
  async live() {
    this.#loading.abort();
    const { signal } = this.#loading = new AbortController();
    this.#log = [];
    try {
      await this.#load({ status: 'queued,processing' }, MAX_UNFINISHED, signal);
      const finished = finishedOf(this.#query);
      if (finished) await this.#load({ ...finished, sort: this.#query.sort }, FINISHED, signal);
      if (signal.aborted) return;
      this.#isLoaded = true;
      this.redraw();
    } catch (error) {
      if (!signal.aborted && !error.transient) this.tell(sentenceFor(error, this.url));
    } finally {
      if (!signal.aborted) this.#log = null;
    }
  }

  async #load(values, most, signal) {
    const { token: source, key } = this;
    const params = filtersOf(this.#query);
    for (const [name, value] of Object.entries(values)) params.set(name, value);
    for (let loaded = 0; loaded < most;) {
      params.set('limit', loaded || most < PAGE ? Math.min(PAGE, most) : FINISHED);
      const token = typeof source === 'function' ? await source() : source;
      const { jobs, next } = await getJson(this.url, `api/jobs?${params}`, { token, key, signal });
      if (signal.aborted) return;
      for (const job of jobs) this.#jobs.put(job);
      const ids = new Set(jobs.map(({ id }) => id));
      for (const message of this.#log) if (ids.has(message.job_id)) this.#jobs.apply(message);
      if (!next) return;
      loaded += jobs.length;
      params.set('after', next);
    }
  }

  /** @returns {boolean} whether a shown job has changed */
  receive(message) {
    if (message.type === 'resync') {
      this.#jobs.clear();
      this.live();
      return true;
    }
    if (!message.job_id) return false;
    this.#log?.push(message);
    return this.#jobs.apply(message);
  }

  draw() {
    if (!this.isConnected) return;
    const { rows, empty } = this.parts;
    this.#rows ??= this.#newRows(rows);
    const isNew = this.#view.refresh();
    const { due } = this.#view;
    clearTimeout(this.#due);
    if (due < Infinity) this.#due = setTimeout(() => this.redraw(), due);
    rows.setAttribute('aria-label', t('Jobs'));
    rows.toggleAttribute('data-empty', !this.#view.lines.length);
    empty.hidden = Boolean(this.#view.lines.length) || !this.#isLoaded || !this.parts.message.hidden;
    empty.textContent = isFiltered(this.#query) ? t('No job matches') : t('No jobs yet');
    if (isNew) this.#rows.show(this.#view.lines, 0);
    else this.#rows.update();
  }

  #newRows(root) {
    const unfold = (id, open) => {
      this.#view.unfold(id, open);
      this.redraw();
    };
    const source = { base: this.url, entryOf: (line) => this.#entryOf(line), marksOf: () => NOTHING, onEnd() {} };
    return new Rows(root, source, { act() {}, select() {}, unfold });
  }

  #entryOf({ id, members }) {
    if (!members) return this.#jobs.get(id) ?? { id, status: 'cancelled' };
    return Batches.rowOf(Batches.counted(id, members.map((member) => this.#jobs.get(member)).filter(Boolean)));
  }
}

customElements.define('progressd-jobs', ProgressdJobs);
