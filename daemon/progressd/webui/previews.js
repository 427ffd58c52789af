/** The previews of a job's pages: a strip of thumbnails, and a dialog that shows one in full size. */

import { element, loadStyle, setText } from './dom.js';
import { number } from './format.js';
import { t } from './text.js';

loadStyle('preview.css');

/** @typedef {import('./jobs.js').Preview} Preview */

/** @param {Preview} preview of a message */
export const sourceOf = (preview) => `data:image/jpeg;base64,${preview.preview_base64}`;

const titleOf = ({ page_number: page, stage }) => (stage ? t('Page {page} · {stage}', { page, stage }) : t('Page {page}', { page }));

/** The dialog, once a page has been opened in it, with the strip and the page that it shows. */
class Dialog {
  #picture = element('img', { alt: '' });
  #caption = element('p', { 'aria-live': 'polite' });
  #root = element('dialog', { class: 'preview', 'aria-label': t('Page preview') }, this.#picture, element('div', { class: 'preview-bar' },
    turner(-1, '←', t('Previous page')), this.#caption, turner(1, '→', t('Next page')),
    element('button', { type: 'button', 'data-close': '' }, t('Close'))));
  #strip = null;
  #page = 0;

  constructor() {
    this.#root.addEventListener('click', ({ target }) => {
      if (target.dataset.turn) this.#turn(Number(target.dataset.turn));
      else if (target === this.#root || target.closest('[data-close]')) this.#root.close();
    });
    this.#root.addEventListener('keydown', ({ key }) => {
      if (key === 'ArrowLeft') this.#turn(-1);
      if (key === 'ArrowRight') this.#turn(1);
    });
    document.body.append(this.#root);
  }

  /** @param {PreviewStrip} strip @param {number} page */
  open(strip, page) {
    const { image, preview } = strip.pages.get(page);
    this.#strip = strip;
    this.#page = page;
    this.#picture.src = image.src;
    this.#picture.alt = titleOf(preview);
    setText(this.#caption, titleOf(preview));
    if (!this.#root.open) this.#root.showModal();
  }

  /** Shows the new picture of a page that is in the dialog. */
  update(strip, page) {
    if (this.#root.open && this.#strip === strip && this.#page === page) this.open(strip, page);
  }

  close(strip) {
    if (this.#strip === strip) this.#root.close();
  }

  #turn(step) {
    const pages = [...this.#strip.pages.keys()].sort((a, b) => a - b);
    this.open(this.#strip, pages[(pages.indexOf(this.#page) + step + pages.length) % pages.length]); // the last precedes the first
  }
}

const turner = (step, sign, label) => element('button', { type: 'button', 'data-turn': step, 'aria-label': label }, sign);

/** @type {?Dialog} */
let dialog = null;

export class PreviewStrip {
  #list;
  #newest; // the pages of the last `show`
  /** @type {Map<number, {item: HTMLElement, image: HTMLImageElement, preview: Preview}>} by page number */
  pages = new Map();

  /** @param {HTMLUListElement} list */
  constructor(list) {
    this.#list = list;
    list.addEventListener('click', ({ target }) => {
      const button = target.closest('button');
      if (button) (dialog ??= new Dialog()).open(this, Number(button.dataset.page));
    });
  }

  /**
   * Shows the newest previews of a card, and only those.
   * @param {Map<number, Preview> | undefined} pages by page number
   * @param {string} name the job's name
   */
  show(pages, name) {
    if (!pages || pages === this.#newest) return;
    this.#newest = pages;
    const list = this.#list;
    list.hidden = false;
    list.setAttribute('aria-label', t('Pages of {name}', { name }));
    this.#keepEnd(() => {
      for (const [page, { item }] of this.pages) {
        if (pages.has(page)) continue;
        item.remove();
        this.pages.delete(page);
      }
      for (const preview of pages.values()) {
        if (preview !== this.pages.get(preview.page_number)?.preview) this.#put(preview, sourceOf(preview));
      }
    });
  }

  /** @param {Preview} preview @param {string} source the URL of its picture */
  add(preview, source) {
    this.#keepEnd(() => this.#put(preview, source));
    dialog?.update(this, preview.page_number);
  }

  clear() {
    this.pages.clear();
    this.#list.replaceChildren();
    dialog?.close(this);
  }

  /** Changes the strip. If its end was visible, it is visible afterwards. */
  #keepEnd(change) {
    const list = this.#list;
    const isAtEnd = list.scrollLeft + list.clientWidth >= list.scrollWidth - 1;
    change();
    if (isAtEnd) list.scrollLeft = list.scrollWidth;
  }

  #put(preview, source) {
    const { page_number: page, width, height } = preview;
    const { item, image } = this.pages.get(page) ?? this.#newItem(page);
    image.src = source;
    image.alt = item.firstElementChild.title = titleOf(preview);
    if (width > 0 && height > 0) Object.assign(image, { width, height });
    this.pages.set(page, { item, image, preview });
  }

  #newItem(page) {
    const image = element('img');
    const button = element('button', { type: 'button', 'data-page': page }, image, element('span', { 'aria-hidden': 'true' }, number(page)));
    const item = element('li', {}, button);
    const later = Math.min(...[...this.pages.keys()].filter((other) => other > page));
    this.#list.insertBefore(item, this.pages.get(later)?.item ?? null);
    return { item, image };
  }
}
