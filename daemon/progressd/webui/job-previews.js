/** The previews of a job's pages: those that the server has kept, and then the live ones; and a dialog for one. */

import { byId, element, setText } from './dom.js';
import { jobPath, request, send } from './pass.js';
import { language, t } from './text.js';

/**
 * @typedef {{page_number: number, stage: string, width: number, height: number, preview_base64?: string}} Preview
 */

const dialog = byId('preview');

export class JobPreviews {
  #id;
  #list = byId('previews');
  /** @type {Map<number, {item: HTMLElement, preview: Preview, isLive: boolean}>} */
  #pages = new Map();
  #shown = 0; // the page in the dialog

  /** @param {string} id the job */
  constructor(id) {
    this.#id = id;
    this.#list.addEventListener('click', ({ target }) => {
      const button = target.closest('button');
      if (button) this.#open(Number(button.dataset.page));
    });
    dialog.addEventListener('click', ({ target }) => {
      if (target.dataset.turn) this.#turn(Number(target.dataset.turn));
      else if (target === dialog || target.closest('[data-close]')) dialog.close();
    });
    dialog.addEventListener('keydown', ({ key }) => {
      if (key === 'ArrowLeft') this.#turn(-1);
      if (key === 'ArrowRight') this.#turn(1);
    });
  }

  /** Requests the previews that the server has kept. Live ones are newer. */
  async load() {
    const { previews } = await request(jobPath(this.#id, '/previews')).catch(() => ({ previews: [] }));
    for (const preview of previews) {
      if (this.#pages.get(preview.page_number)?.isLive) continue;
      const source = await this.#picture(preview.page_number).catch(() => null);
      if (source && !this.#pages.get(preview.page_number)?.isLive) this.#put(preview, source, false);
    }
  }

  /** @param {Preview} preview of the stream */
  add(preview) {
    this.#put(preview, `data:image/jpeg;base64,${preview.preview_base64}`, true);
  }

  clear() {
    this.#pages.clear();
    this.#list.replaceChildren();
    byId('previews-part').hidden = true;
    if (dialog.open) dialog.close();
  }

  /** An image cannot send the key, so the picture becomes part of the page. */
  async #picture(page) {
    const picture = await (await send(jobPath(this.#id, `/previews/${page}`))).blob();
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(picture);
    });
  }

  #put(preview, source, isLive) {
    const { page_number: page, width, height } = preview;
    const list = this.#list;
    const atEnd = list.scrollLeft + list.clientWidth >= list.scrollWidth - 1;
    const item = this.#pages.get(page)?.item ?? this.#newItem(page);
    const image = item.querySelector('img');
    byId('previews-part').hidden = false;
    image.src = source;
    image.alt = item.firstElementChild.title = titleOf(preview);
    if (width > 0 && height > 0) Object.assign(image, { width, height });
    setText(item.querySelector('span'), new Intl.NumberFormat(language).format(page));
    this.#pages.set(page, { item, preview, isLive });
    if (atEnd && isLive) list.scrollLeft = list.scrollWidth;
    if (dialog.open && this.#shown === page) this.#open(page);
  }

  #newItem(page) {
    const button = element('button', { type: 'button', 'data-page': page }, element('img'), element('span', { 'aria-hidden': 'true' }));
    const item = element('li', {}, button);
    const later = Math.min(...[...this.#pages.keys()].filter((other) => other > page));
    this.#list.insertBefore(item, this.#pages.get(later)?.item ?? null);
    return item;
  }

  #open(page) {
    const { item, preview } = this.#pages.get(page);
    this.#shown = page;
    const picture = dialog.querySelector('img');
    picture.src = item.querySelector('img').src;
    picture.alt = titleOf(preview);
    setText(byId('preview-caption'), titleOf(preview));
    if (!dialog.open) dialog.showModal();
  }

  #turn(step) {
    const pages = [...this.#pages.keys()].sort((a, b) => a - b);
    this.#open(pages[(pages.indexOf(this.#shown) + step + pages.length) % pages.length]);
  }
}

const titleOf = ({ page_number: n, stage }) => (stage ? t('Page {page} · {stage}', { page: n, stage }) : t('Page {page}', { page: n }));
