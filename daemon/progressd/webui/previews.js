/** The page previews of a job: a strip of thumbnails, and a dialog that shows one in full size. */

import { t } from './text.js';

const dialog = document.getElementById('preview');
const picture = dialog.querySelector('img');
const caption = dialog.querySelector('[data-part=caption]');

/** @typedef {import('./jobs.js').Preview} Preview */

const sourceOf = (preview) => `data:image/jpeg;base64,${preview.preview_base64}`;
const titleOf = ({ page_number: page, stage }) => (stage ? t('Page {page} · {stage}', { page, stage }) : t('Page {page}', { page }));

/** @type {{pages: Preview[], at: number}} the previews in the dialog, and the index of the shown one */
const shown = { pages: [], at: 0 };

function turnTo(at) {
  const { length } = shown.pages;
  shown.at = (at + length) % length; // the last preview precedes the first
  const page = shown.pages[shown.at];
  picture.src = sourceOf(page);
  picture.alt = caption.textContent = titleOf(page);
}

dialog.addEventListener('click', ({ target }) => {
  if (target.dataset.turn) turnTo(shown.at + Number(target.dataset.turn));
  else if (target === dialog || target.closest('[data-close]')) dialog.close();
});
dialog.addEventListener('keydown', ({ key }) => {
  if (key === 'ArrowLeft') turnTo(shown.at - 1);
  if (key === 'ArrowRight') turnTo(shown.at + 1);
});

export class PreviewStrip {
  #list;
  #pages = new Map();
  #buttons = new Map();

  /** @param {HTMLUListElement} list */
  constructor(list) {
    this.#list = list;
    list.addEventListener('click', ({ target }) => {
      const button = target.closest('button');
      if (!button) return;
      const numbers = [...this.#pages.keys()].sort((a, b) => a - b);
      shown.pages = numbers.map((number) => this.#pages.get(number));
      turnTo(numbers.indexOf(Number(button.dataset.page)));
      dialog.showModal();
    });
  }

  /**
   * @param {Map<number, Preview> | undefined} pages by page number
   * @param {string} name the job's name
   */
  show(pages, name) {
    if (!pages || pages === this.#pages) return;
    const list = this.#list;
    list.hidden = false;
    const atEnd = list.scrollLeft + list.clientWidth >= list.scrollWidth - 1;
    list.setAttribute('aria-label', t('Pages of {name}', { name }));
    for (const [number, button] of this.#buttons) if (!pages.has(number)) this.#drop(number, button);
    for (const [number, preview] of pages) if (preview !== this.#pages.get(number)) this.#put(number, preview);
    if (atEnd) list.scrollLeft = list.scrollWidth;
    this.#pages = pages;
  }

  #drop(number, button) {
    button.parentElement.remove();
    this.#buttons.delete(number);
  }

  #put(number, preview) {
    const button = this.#buttons.get(number) ?? this.#add(number);
    const image = button.firstElementChild;
    image.src = sourceOf(preview);
    image.alt = button.title = titleOf(preview);
    if (preview.width && preview.height) Object.assign(image, { width: preview.width, height: preview.height });
  }

  #add(number) {
    const button = document.createElement('button');
    button.type = 'button';
    button.dataset.page = number;
    button.append(document.createElement('img'));
    const item = document.createElement('li');
    item.append(button);
    const later = [...this.#buttons.keys()].filter((other) => other > number);
    const next = this.#buttons.get(Math.min(...later));
    this.#list.insertBefore(item, next?.parentElement ?? null);
    this.#buttons.set(number, button);
    return button;
  }
}
