/** The dialog that makes a link to a page, which works without a key. */

import { byId, setText } from './dom.js';
import { request } from './pass.js';
import { t, timeLocale } from './text.js';

const dialog = byId('share');
const form = dialog.querySelector('form');

/**
 * Makes the dialog create links to this page.
 * @param {{page: string, tokens: string}} paths the page, and where tokens for it are made
 * @param {() => boolean} isOpen whether everybody may read, so that the link needs no token
 */
export function setUpSharing({ page, tokens }, isOpen) {
  byId('share-make').addEventListener('click', async ({ currentTarget: button }) => {
    if (button.ariaBusy === 'true') return;
    button.ariaBusy = 'true';
    complain('');
    try {
      await show(isOpen() ? { link: new URL(page, document.baseURI).href } : await newLink(page, tokens));
    } catch (error) {
      complain(error.message);
    } finally {
      button.ariaBusy = null;
    }
  });
  form.addEventListener('change', forget);
  return () => {
    forget();
    complain('');
    for (const part of dialog.querySelectorAll('[data-with-token]')) part.hidden = isOpen();
    byId('share-open').hidden = !isOpen();
    dialog.showModal();
    byId('share-make').focus();
  };
}

async function newLink(page, tokens) {
  const { lifetime, log } = form.elements;
  const query = new URLSearchParams({ lifetime: lifetime.value });
  if (log?.checked) query.set('log', 'true');
  const { token, expires_at: end } = await request(`${tokens}?${query}`, 'POST');
  return { link: `${new URL(page, document.baseURI).href}#token=${token}`, end };
}

async function show({ link, end }) {
  const field = byId('share-link');
  field.value = link;
  byId('share-result').hidden = false;
  const copied = await copy(link, field);
  const until = end && new Intl.DateTimeFormat(timeLocale(), { dateStyle: 'medium', timeStyle: 'short' }).format(new Date(end));
  const sentences = until
    ? [t('Copied. The link works until {time}.', { time: until }), t('Copy the link above. It works until {time}.', { time: until })]
    : [t('Copied.'), t('Copy the link above.')];
  setText(byId('share-done'), sentences[copied ? 0 : 1]);
}

/** Pages without https may not use the clipboard, except by the old command. */
async function copy(text, field) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    field.focus();
    field.select();
    return document.execCommand('copy');
  }
}

function forget() {
  byId('share-result').hidden = true;
  byId('share-link').value = '';
  setText(byId('share-done'), '');
}

function complain(sentence) {
  setText(byId('share-note'), sentence);
  byId('share-note').hidden = !sentence;
}
