/** The previews of a job's pages: a strip of thumbnails, and a dialog that shows one in full size. */

import { element, setText } from './dom.js';
import { number } from './format.js';
import { t } from './text.js';

const picture = element('img', { alt: '' });
const caption = element('p', { 'aria-live': 'polite' });
const turner = (step, sign, label) => element('button', { type: 'button', 'data-turn': step, 'aria-label': label }, sign);
const dialog = element('dialog', { class: 'preview', 'aria-label': t('Page preview') }, picture, element('div', { class: 'preview-bar' },
  turner(-1, '←', t('Previous page')), caption, turner(1, '→', t('Next page')),
  element('button', { type: 'button', 'data-close': '' }, t('Close'))));
document.body.append(dialog);

/** @typedef {import('./jobs.js').Preview} Preview */

/** @param {Preview} preview of a message */
export const sourceOf = (preview) => `data:image/jpeg;base64,${preview.preview_base64}`;

const titleOf = ({ page_number: page, stage }) => (stage ? t('Page {page} · {stage}', { page, stage }) : t('Page {page}', { page }));

/** @type {{strip: ?PreviewStrip, page: number}} the strip and the page in the dialog */
const shown = { strip: null, page: 0 };

function open(strip, page) {
  const { image, preview } = strip.pages.get(page);
  Object.assign(shown, { strip, page });
  picture.src = image.src;
  picture.alt = titleOf(preview);
  setText(caption, titleOf(preview));
  if (!dialog.open) dialog.showModal();
}

function turn(step) {
  const pages = [...shown.strip.pages.keys()].sort((a, b) => a - b);
  open(shown.strip, pages[(pages.indexOf(shown.page) + step + pages.length) % pages.length]); // the last precedes the first
}

dialog.addEventListener('click', ({ target }) => {
  if (target.dataset.turn) turn(Number(target.dataset.turn));
  else if (target === dialog || target.closest('[data-close]')) dialog.close();
});
dialog.addEventListener('keydown', ({ key }) => {
  if (key === 'ArrowLeft') turn(-1);
  if (key === 'ArrowRight') turn(1);
});

export class PreviewStrip {
  #list;
  /** @type {Map<number, {item: HTMLElement, image: HTMLImageElement, preview: Preview}>} by page number */
  pages = new Map();

  /** @param {HTMLUListElement} list */
  constructor(list) {
    this.#list = list;
    list.addEventListener('click', ({ target }) => {
      const button = target.closest('button');
      if (button) open(this, Number(button.dataset.page));
    });
  }

  /**
   * Shows the newest previews of a card, and only those.
   * @param {Map<number, Preview> | undefined} pages by page number
   * @param {string} name the job's name
   */
  show(pages, name) {
    if (!pages) return;
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
    if (dialog.open && shown.strip === this && shown.page === preview.page_number) open(this, shown.page);
  }

  clear() {
    this.pages.clear();
    this.#list.replaceChildren();
    if (dialog.open) dialog.close();
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
