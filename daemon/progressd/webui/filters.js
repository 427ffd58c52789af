/** The form of filters and the order. It is loaded when it is opened. */

import { element } from './dom.js';
import { SORTS } from './query.js';
import { sortNames } from './toolbar.js';
import { t } from './text.js';

/** The values offered for a filter. */
const MAX_OFFERED = 100;

export class Filters {
  #form;
  #onChange;

  /**
   * @param {HTMLElement} menu
   * @param {(changed: object) => void} onChange receives the new `kind`, `host` and `sort`, and a `label` to be added
   */
  constructor(menu, onChange) {
    this.#onChange = onChange;
    const names = sortNames();
    this.#form = element('form', {}, field(t('Kind'), 'kind'), field(t('Host'), 'host'),
      field(t('Label'), 'label', t('NAME=VALUE')),
      element('label', {}, element('span', {}, t('Order')),
        element('select', { name: 'sort' }, ...SORTS.map((sort) => new Option(names[sort], sort)))));
    this.#form.addEventListener('submit', (event) => event.preventDefault());
    this.#form.addEventListener('change', () => this.#changed());
    menu.append(this.#form);
  }

  /** @param {import('./query.js').Query} query */
  show({ kind, host, sort }) {
    const { elements } = this.#form;
    Object.assign(elements.kind, { value: kind });
    Object.assign(elements.host, { value: host });
    Object.assign(elements.label, { value: '' });
    Object.assign(elements.sort, { value: sort });
  }

  /** Offers the values that the jobs have. @param {Iterable<import('./jobs.js').Job>} jobs */
  offer(jobs) {
    const offered = { kind: new Set(), host: new Set(), label: new Set() };
    for (const { kind, labels = {} } of jobs) {
      if (kind) offered.kind.add(kind);
      if (labels.host) offered.host.add(labels.host);
      for (const [key, value] of Object.entries(labels)) {
        if (key !== 'host' && offered.label.size < MAX_OFFERED) offered.label.add(`${key}=${value}`);
      }
    }
    for (const [name, values] of Object.entries(offered)) {
      const options = [...values].sort().slice(0, MAX_OFFERED).map((value) => new Option(value, value));
      this.#form.elements[name].list.replaceChildren(...options);
    }
  }

  #changed() {
    const { kind, host, label, sort } = this.#form.elements;
    const given = label.value.trim();
    label.setCustomValidity(given && given.indexOf('=') < 1 ? t('A label has the form NAME=VALUE.') : '');
    if (!this.#form.reportValidity()) return;
    this.#onChange({ kind: kind.value.trim(), host: host.value.trim(), sort: sort.value, label: given });
  }
}

function field(title, name, placeholder = '') {
  const list = element('datalist', { id: `${name}s` });
  const input = element('input', { name, autocomplete: 'off', placeholder });
  input.setAttribute('list', list.id);
  return element('label', {}, element('span', {}, title), input, list);
}
