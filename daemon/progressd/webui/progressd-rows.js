/** Rows of jobs with small bars, for `<progressd-batch>` and `<progressd-jobs>`. */

import { setBar, setText } from './progressd-element.js';
import { percentText, verdictOf } from './progressd-job.js';
import { t } from './text.js';

const ROW = '<span class="grow" part="job-name"></span>' +
  '<span class="bar" part="job-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100">' +
  '<span class="fill" part="job-fill"></span></span><span class="figure" part="job-figure"></span>';

const sheet = new CSSStyleSheet();
sheet.replaceSync(`
ul { display: grid; gap: .125em; margin-top: .25em; }
li { --state: var(--idle); display: grid; grid-template-columns: minmax(0, 1fr) 30% 6em; gap: .75em; align-items: center; font-size: .875em; }
li .fill { display: block; }
li .figure { font-weight: 400; font-size: inherit; text-align: right; }
li[data-status=processing] { --state: var(--running); }
li[data-status=completed] { --state: var(--done); }
li[data-status=failed] { --state: var(--failed); }
li[data-stalled] { --state: var(--stalled); }
@container (max-width: 24em) { li { grid-template-columns: minmax(0, 1fr) 4em; } li .bar { display: none; } }
`);

export class Rows {
  static sheet = sheet;
  #list;
  #card;
  #rows = new Map();

  /** @param {{card: HTMLElement, jobs: HTMLElement}} parts of the element */
  constructor({ card, jobs }) {
    this.#card = card;
    this.#list = jobs;
  }

  /** @param {{id: string, name?: string, status: string, progress?: object}[]} jobs in their order */
  show(jobs) {
    const rows = jobs.map((job) => this.#draw(job));
    const isSame = rows.length === this.#list.children.length && rows.every((row, place) => row === this.#list.children[place]);
    if (!isSame) this.#list.replaceChildren(...rows);
    const ids = new Set(jobs.map(({ id }) => id));
    for (const id of this.#rows.keys()) if (!ids.has(id)) this.#rows.delete(id);
    this.#list.hidden = !jobs.length;
  }

  #draw({ id, name: title = t('Job'), status, progress = {} }) {
    let row = this.#rows.get(id);
    if (!row) {
      row = document.createElement('li');
      row.innerHTML = ROW;
      this.#rows.set(id, row);
    }
    const [name, bar, figure] = row.children;
    const openEnded = status === 'processing' && progress.total_steps === 0 && !progress.percent;
    const percent = status === 'completed' ? 100 : progress.percent ?? 0;
    const verdict = verdictOf(status) ?? (openEnded ? t('Running') : percentText(percent, this.#card.lang));
    row.dataset.status = status;
    row.toggleAttribute('data-stalled', status === 'processing' && Boolean(progress.stalled));
    setText(name, title);
    name.title = title;
    setText(figure, verdict);
    setBar(bar, openEnded ? null : percent, t('Progress of {name}', { name: title }), verdict);
    return row;
  }
}
