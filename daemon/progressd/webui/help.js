/** The dialog with the keys of the page. It is loaded when it is needed. */

import { byId, element, loadStyle } from './dom.js';
import { areKeysOn, switchKeys } from './keys.js';
import { t } from './text.js';

await loadStyle('keys.css');

/** @param {HTMLDialogElement} dialog */
export function showHelp(dialog) {
  dialog.replaceChildren();
  fill(dialog);
  dialog.showModal();
}

const toWrite = () => [
  ['c', t('Cancel')],
  ['z', t('Undo the cancelling')],
  ['r', t('Retry')],
  ['Del', t('Delete')],
];

const ofList = () => [
  ['/', t('Search')],
  ['↑ ↓', t('Previous or next job')],
  ['PgUp PgDn', t('A page up or down')],
  ['Home End', t('First or last job')],
  ['Enter', t('Open the job')],
  [t('Space'), t('Select the job')],
  ['Shift ↑ ↓', t('Select several jobs')],
  ['Ctrl A', t('Select all jobs of the list')],
  ['→ ←', t('Show or hide the jobs of a batch')],
  ['Esc', t('Clear the selection or the search')],
  ['*', t('Star')],
  ['d', t('Download')],
];

const ofOne = () => [
  ['d', t('Download')],
  ['s', t('Share')],
];

const ofLog = () => [
  ['/', t('Find in the log')],
  ['Enter Shift+Enter', t('Next or previous match')],
  ['f', t('Follow the log')],
];

function fill(dialog) {
  const isShown = byId('main')?.checkVisibility();
  const [isList, isOne] = [isShown && Boolean(byId('rows')), isShown && Boolean(byId('actions'))];
  const mayWrite = !document.body.hasAttribute('data-looks-only');
  const keys = [
    ...(isList ? ofList() : []),
    ...(isOne ? ofOne() : []),
    ...((isList || isOne) && mayWrite ? toWrite() : []),
    ...(byId('log')?.checkVisibility() ? ofLog() : []),
    ...(isList ? [] : [['u', t('All jobs')]]),
    ['?', t('Show these keys')],
  ];
  const names = (text) => text.split(' ').flatMap((name) => [element('kbd', {}, name), ' ']);
  const list = element('dl', {}, ...keys.flatMap(([key, meaning]) =>
    [element('dt', {}, ...names(key)), element('dd', {}, meaning)]));
  const box = element('input', { type: 'checkbox', checked: areKeysOn() });
  box.addEventListener('change', () => switchKeys(box.checked));
  const title = element('h2', { id: 'keys-title' }, t('Keys'));
  dialog.setAttribute('aria-labelledby', title.id);
  dialog.append(title, list,
    element('p', {}, element('label', {}, box, ' ', t('Use these keys'))),
    element('form', { method: 'dialog' }, element('button', { autofocus: true }, t('Close'))));
}
