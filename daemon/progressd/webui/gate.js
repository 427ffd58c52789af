/** Sign-in: requests the identity of this page from the server, and asks the user for a key if one is required. */

import { currentKey, forgetTyped, isPossible, onRefused, useKey } from './access.js';
import { whoAmI } from './api.js';
import { t } from './text.js';

/**
 * @typedef {object} Who
 * @property {boolean} authenticated
 * @property {boolean} [auth_required]
 * @property {string} [key_name]
 * @property {string[]} [scopes]
 */

export class Gate {
  #root;
  #form;
  #input;
  #error;
  #listener;
  #locked = null;

  /**
   * @param {HTMLElement} root contains the form
   * @param {{onOpened: (who: Who | null) => void, onLocked: () => void}} listener
   *   `onOpened` is also called when more is known of the identity: null while the server does not respond
   */
  constructor(root, listener) {
    this.#root = root;
    this.#form = root.querySelector('form');
    this.#input = root.querySelector('input');
    this.#error = root.querySelector('[role=alert]');
    this.#listener = listener;
    onRefused((sentence) => this.#lock(currentKey() === null ? '' : asSentence(sentence)));
    this.#form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#try(this.#input.value.trim());
    });
  }

  /** Requests the identity of the current key. */
  async enter() {
    const used = currentKey();
    let who = null;
    try {
      who = await whoAmI();
    } catch (error) {
      if (error.status === 401) { // the gate is locked now, and the key removed
        if (used !== null && !(await isNeeded())) this.#open(null);
        return;
      }
    }
    if (who && !who.authenticated) useKey(null); // the key is not valid here
    if (who?.auth_required) this.#lock('');
    else if (who?.authenticated && !mayLook(who)) this.#lock(lacking(who));
    else this.#open(who);
  }

  async #try(key) {
    if (!isPossible(key)) {
      this.#complain(t('This is not a key: it contains characters that keys never have.'));
      return;
    }
    useKey(key);
    this.#form.ariaBusy = 'true';
    await this.enter();
    this.#form.ariaBusy = null;
  }

  #lock(sentence) {
    useKey(null);
    forgetTyped();
    const before = this.#locked;
    this.#locked = true;
    this.#root.hidden = false;
    this.#complain(sentence);
    if (!before) this.#listener.onLocked();
    this.#input.select();
    this.#input.focus();
  }

  #open(who) {
    this.#locked = false;
    this.#root.hidden = true;
    this.#input.value = '';
    this.#complain('');
    this.#listener.onOpened(who);
  }

  #complain(sentence) {
    this.#error.textContent = sentence;
    this.#error.hidden = !sentence;
    this.#input.toggleAttribute('aria-invalid', Boolean(sentence));
  }
}

const asSentence = (text) => t('{sentence}.', { sentence: text.charAt(0).toUpperCase() + text.slice(1) });

/** Whether a key is required: an old key may be rejected by a server that requires none. */
async function isNeeded() {
  try {
    return Boolean((await whoAmI()).auth_required);
  } catch {
    return true;
  }
}

const mayLook = ({ scopes = [] }) => scopes.includes('read') || scopes.includes('admin');

/** @param {Who | null} who @returns {boolean} whether it may submit, cancel, retry and delete */
export const mayWrite = (who) =>
  !who?.authenticated || who.scopes.includes('write') || who.scopes.includes('admin');

const lacking = ({ key_name: name }) => t('The key {name} cannot view jobs: it needs the scope read.', { name });
