/** The frame of the pages of one thing: the key or token, the state of the connection, notices, and absence. */

import { currentKey, useKey } from './access.js';
import { byId, setText } from './dom.js';
import { Gate, mayWrite } from './gate.js';
import './keys.js';
import { checkVersion } from './lazy.js';
import { token } from './pass.js';
import { sentence, t, timeLocale, translatePage } from './text.js';

await translatePage();

/** After this time without a connection, the page says that what it shows is old. */
const LOST_MS = 5000;

const CONNECTIONS = { live: t('Live'), polling: t('Polling'), reconnecting: t('Reconnecting…') };

export class Frame {
  /** @type {?import('./gate.js').Who} */
  who = null;
  #listener;
  #gate;
  #lostAt = null;
  #wasLost = false;
  #stated = null; // the server's notice about itself
  #isOpen = false;

  /** @param {{onOpened: () => void, onLocked: () => void, onLost?: () => void}} listener */
  constructor(listener) {
    this.#listener = listener;
    this.#gate = new Gate(byId('gate'), {
      onOpened: (who) => this.#opened(who),
      onLocked: () => this.#locked(),
    });
    byId('sign-out').addEventListener('click', () => {
      useKey(null);
      location.reload();
    });
    window.addEventListener('hashchange', () => location.reload()); // another token
    setInterval(() => this.#lostAt === null || document.hidden || this.#showNotice(), 1000);
  }

  /** Asks for a key if one is required, unless the page was opened with a token. */
  enter() {
    this.#showWho();
    if (token) this.#listener.onOpened();
    else this.#gate.enter();
  }

  /** Whether everybody may read, so that a link needs no token. */
  get isOpenToAll() {
    return !this.who?.authenticated && this.who?.auth_required === false;
  }

  get isLost() {
    return document.body.hasAttribute('data-lost');
  }

  #opened(who) {
    this.who = who ?? {};
    this.#showWho();
    if (!this.#isOpen) this.#listener.onOpened();
    this.#isOpen = true;
  }

  #locked() {
    this.#isOpen = false;
    this.who = null;
    byId('main').hidden = byId('nothing').hidden = byId('connection').hidden = true;
    this.#showWho();
    this.#listener.onLocked();
  }

  #showWho() {
    byId('who').hidden = currentKey() === null || Boolean(token);
    setText(byId('who-name'), this.who?.key_name ?? '');
    document.body.toggleAttribute('data-looks-only', Boolean(token) || !mayWrite(this.who));
    for (const part of document.querySelectorAll('#way, .colophon a')) part.hidden = Boolean(token);
  }

  /** Shows the content instead of the gate. @returns {boolean} whether it was hidden before */
  show() {
    const isFirst = byId('main').hidden;
    byId('gate').hidden = byId('nothing').hidden = true;
    byId('main').hidden = false;
    return isFirst;
  }

  /** @param {'live' | 'polling' | 'reconnecting' | 'ended'} connection */
  connect(connection) {
    const indicator = byId('connection');
    if (connection !== 'reconnecting' && this.#wasLost) checkVersion();
    this.#wasLost = connection === 'reconnecting' && !byId('main').hidden;
    indicator.hidden = connection === 'ended';
    indicator.dataset.connection = connection;
    setText(indicator, CONNECTIONS[connection] ?? '');
    if (connection !== 'reconnecting') this.#lostAt = null;
    else this.#lostAt ??= byId('main').hidden ? null : Date.now();
    if (connection === 'live' || connection === 'polling') {
      this.#stated = null;
      note('');
    }
    this.#showNotice();
  }

  /** @param {?string | {type: string}} notice a sentence, or a message of the server about itself */
  state(notice) {
    this.#stated = typeof notice === 'object' && notice ? sentenceOf(notice) : notice;
    this.#showNotice();
  }

  #showNotice() {
    const isLost = this.#lostAt !== null && Date.now() - this.#lostAt >= LOST_MS;
    const time = isLost && new Intl.DateTimeFormat(timeLocale(), { timeStyle: 'short' }).format(this.#lostAt);
    const shown = isLost ? t('No connection since {time}. What you see is from then.', { time }) : this.#stated;
    setText(byId('notice'), shown ?? '');
    byId('notice').hidden = !shown;
    if (isLost === this.isLost) return;
    document.body.toggleAttribute('data-lost', isLost);
    this.#listener.onLost?.();
  }

  /** Shows that there is nothing to show. @param {string} title @param {string} text @param {boolean} [isExpired] */
  absent(title, text, isExpired = false) {
    byId('main').hidden = true;
    byId('nothing').hidden = false;
    setText(byId('nothing-title'), title);
    setText(byId('nothing-text'), text);
    const link = byId('nothing-link');
    link.href = isExpired ? location.pathname : './';
    setText(link, isExpired ? t('Open it with a key') : t('All jobs'));
    document.title = `${title} – progressd`;
    setText(byId('announcements'), title);
  }
}

function sentenceOf({ type, data = {}, error = data.error, countdown_secs: seconds = data.countdown_secs }) {
  if (type === 'server_shutdown') {
    return seconds
      ? t('The server stops within {n} s. This page reconnects by itself when the server is back.', { n: seconds })
      : t('The server stops now. This page reconnects by itself when the server is back.');
  }
  return error ? t('The server cannot save changes at the moment: {error}.', { error: sentence(error) }) : null;
}

/** Shows why the last action failed; an empty text clears it. */
export function note(text) {
  setText(byId('note'), text);
  byId('note').hidden = !text;
}

/** Runs an action, and shows why it failed. */
export async function attempt(button, act) {
  if (button.ariaBusy === 'true') return;
  button.ariaBusy = 'true';
  note('');
  try {
    await act();
  } catch (error) {
    note(error.message);
  } finally {
    button.ariaBusy = null;
  }
}
