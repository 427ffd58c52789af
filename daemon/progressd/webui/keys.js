/** The keys of all pages. A key presses the button that does the same; the list has more keys for its rows. */

import { byId } from './dom.js';
import { lazily } from './lazy.js';
import { choose, setting } from './settings.js';
import { Toasts } from './toasts.js';

/** What a key does with the thing of the page, or with the focused job of the list. */
const ACTIONS = { c: 'cancel', d: 'download', r: 'retry', s: 'share', '*': 'star', Delete: 'delete' };

/** A job or a batch in the list. The card of a batch contains those of its jobs. */
const THING = '[role=row][data-id], .job';

const isVisible = (node) => Boolean(node?.checkVisibility({ visibilityProperty: true }));

const press = (button) => {
  if (!isVisible(button)) return false;
  button.click();
  if (button.hasAttribute('data-asking')) button.focus(); // so that screen readers read the question
  return true;
};

/** The keys that work everywhere. @type {Record<string, () => boolean>} whether there was something to do */
const EVERYWHERE = {
  '?': showKeys,
  '/': search,
  f: () => isVisible(byId('log')) && byId('log').toggleFollow(),
  u: () => press([...document.querySelectorAll('#way a, .nothing a')].find(isVisible)),
  z: () => press([...document.querySelectorAll('.toast [data-undo]')].at(-1)),
};

function search() {
  const [field, log] = [byId('search'), byId('log')];
  if (isVisible(log)) log.focusFind();
  else if (!isVisible(field)) return false;
  field?.focus();
  field?.select();
  return true;
}

/** Single keys can disturb those who speak to their computer, so they can be switched off. */
export const areKeysOn = () => setting('keys') !== 'off';
export const switchKeys = (isOn) => choose('keys', isOn ? null : 'off');

function act(key) {
  const one = byId('actions');
  const scope = one ?? document.activeElement.closest(THING);
  const name = ACTIONS[key];
  const buttons = scope?.querySelectorAll(`[data-action=${name}], [data-action=${name}All]`) ?? [];
  return press([...buttons].find((button) => isVisible(button) && (one || button.closest(THING) === scope)));
}

function pressed(event) {
  const { key } = event;
  const [target] = event.composedPath();
  if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.repeat) return;
  if (target.matches?.('input:not([type=checkbox], [type=radio]), select, textarea') || document.querySelector('dialog[open]')) return;
  if (isVisible(byId('gate')) || !(areKeysOn() || key === '?')) return;
  if (EVERYWHERE[key] ? EVERYWHERE[key]() : key in ACTIONS && act(key)) event.preventDefault();
}

function showKeys() {
  lazily(() => import('./help.js'), false).then(({ showHelp }) => showHelp(byId('keys')), ({ message }) => new Toasts(byId('toasts')).say(message));
  return true;
}

document.addEventListener('keydown', pressed);
byId('keys-button').addEventListener('click', showKeys);
