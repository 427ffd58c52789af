/** Short messages at the lower edge of the window. One may offer to undo something for a few seconds. */

import { t } from './text.js';

const SHOWN_MS = 8000;

export class Toasts {
  #root;

  /** @param {HTMLElement} root a live region */
  constructor(root) {
    this.#root = root;
  }

  /** @param {string} sentence */
  say(sentence) {
    const toast = this.#add(sentence);
    const close = document.createElement('button');
    close.type = 'button';
    close.textContent = t('Close');
    close.addEventListener('click', () => toast.remove());
    toast.append(close);
    setTimeout(() => toast.remove(), SHOWN_MS);
  }

  /** @param {string} sentence @param {() => void} onUndo @returns {() => void} removes the toast */
  offerUndo(sentence, onUndo) {
    const toast = this.#add(sentence);
    const undo = document.createElement('button');
    undo.type = 'button';
    undo.dataset.undo = '';
    undo.textContent = t('Undo');
    undo.addEventListener('click', onUndo);
    toast.append(undo);
    return () => toast.remove();
  }

  #add(sentence) {
    const toast = document.createElement('div');
    toast.className = 'toast';
    const text = document.createElement('span');
    text.textContent = sentence;
    toast.append(text);
    this.#root.append(toast);
    return toast;
  }
}
