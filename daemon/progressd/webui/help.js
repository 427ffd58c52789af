/** The dialog with the keys. It is loaded when it is needed. */

import { t } from './text.js';

/** @param {HTMLDialogElement} dialog */
export function showHelp(dialog) {
  if (!dialog.childElementCount) fill(dialog);
  dialog.showModal();
}

function fill(dialog) {
  const keys = [
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
    ['?', t('Show these keys')],
  ];
  const title = document.createElement('h2');
  title.textContent = t('Keys');
  title.id = 'keys-title';
  dialog.setAttribute('aria-labelledby', title.id);
  const list = document.createElement('dl');
  for (const [key, meaning] of keys) {
    const [term, text] = [document.createElement('dt'), document.createElement('dd')];
    for (const part of key.split(' ')) {
      const kbd = document.createElement('kbd');
      kbd.textContent = part;
      term.append(kbd, ' ');
    }
    text.textContent = meaning;
    list.append(term, text);
  }
  const form = document.createElement('form');
  form.method = 'dialog';
  const close = document.createElement('button');
  close.textContent = t('Close');
  form.append(close);
  dialog.append(title, list, form);
}
