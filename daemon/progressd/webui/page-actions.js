/** The buttons of the page of a job or batch: share, cancel with Undo, retry, delete and download. */

import { currentKey } from './access.js';
import { signedUrl } from './api.js';
import { Cancelling } from './cancelling.js';
import { isConfirmed } from './confirm.js';
import { byId, element } from './dom.js';
import { attempt } from './frame.js';
import { request, token } from './pass.js';
import { setting } from './settings.js';
import { Toasts } from './toasts.js';

const root = byId('actions');

export class PageActions {
  #path;
  #page;
  #cancelling;

  /**
   * @param {string} path of the job or batch in the REST API
   * @param {object} page
   * @param {() => object} page.entry the job, or `{ id, status, batch: true }`
   * @param {() => void} page.share opens the dialog
   * @param {() => void} page.onChange it is about to be cancelled, or no longer
   * @param {() => Promise<?>} page.onCancelled
   * @param {(answer: object) => string} page.next the page of what was started again
   * @param {() => void} page.onDeleted
   */
  constructor(path, page) {
    this.#path = path;
    this.#page = page;
    const toasts = new Toasts(byId('toasts'));
    this.#cancelling = new Cancelling({
      offerUndo: (sentence, onUndo) => toasts.offerUndo(sentence, onUndo),
      onChange: page.onChange,
      onCancel: (entries, isLeaving) => this.#isOver || attempt(root, () => this.#cancel(isLeaving)),
    });
    root.addEventListener('click', (event) => this.#clicked(event));
  }

  /** Whether it is about to be cancelled. */
  get isPending() {
    return this.#cancelling.has(this.#page.entry()?.id);
  }

  get #isOver() {
    return !['queued', 'processing'].includes(this.#page.entry()?.status);
  }

  /** @param {Record<string, boolean>} shown by the buttons' `data-action` */
  show(shown) {
    const focused = document.activeElement;
    for (const button of root.querySelectorAll('button')) {
      button.hidden = !shown[button.dataset.action] || (button.dataset.action === 'cancel' && this.isPending);
      if (!button.hasAttribute('data-asking')) button.ariaLabel = button.textContent.trim();
    }
    if (focused?.hidden && root.contains(focused)) byId('name').focus();
  }

  #clicked(event) {
    const button = event.target.closest('[data-action]');
    if (!button) return;
    const { action, question } = button.dataset;
    if (action === 'download') this.#download(event, button);
    else if (action === 'share') this.#page.share();
    else if (action === 'cancel' && setting('cancel') !== 'ask') this.#cancelling.add([this.#page.entry()]);
    else if (!question || isConfirmed(button, question)) attempt(button, () => this.#act(action));
  }

  #act(action) {
    if (action === 'cancel') return this.#cancel();
    return action === 'retry' ? this.#retry() : this.#delete();
  }

  async #cancel(keepalive) {
    await request(this.#path, 'DELETE', { keepalive });
    await this.#page.onCancelled();
  }

  async #retry() {
    const answer = await request(`${this.#path}/retry`, 'POST');
    location.assign(new URL(this.#page.next(answer), document.baseURI));
  }

  async #delete() {
    await request(`${this.#path}?purge=true`, 'DELETE').catch((error) => { if (error.status !== 404) throw error; });
    this.#page.onDeleted();
  }

  /** A link cannot carry the key, so the browser opens a link with a short-lived token. */
  #download(event, link) {
    if (!link.hasAttribute('download') || token || currentKey() === null) return;
    event.preventDefault();
    attempt(link, async () => element('a', { href: await signedUrl(this.#path), download: '' }).click());
  }
}
