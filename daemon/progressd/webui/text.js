/** The language of the page. The English text in the code is also its key: an untranslated text stays English. */

import { choose, setting } from './settings.js';

const LANGUAGES = { en: 'English', ja: '日本語' };

let messages = {};

/** The language in use, for `Intl`. */
export let language = 'en';

/**
 * Loads a language. Call it before anything is shown.
 * @param {readonly string[]} [preferred] language tags, the best first
 */
export async function loadLanguage(preferred = [setting('language') ?? '', ...navigator.languages]) {
  const wanted = preferred.map((tag) => tag.split('-')[0]).find((tag) => Object.hasOwn(LANGUAGES, tag)) ?? 'en';
  const loaded = wanted === 'en' ? {} : (await import(`./languages/${wanted}.js`)).default;
  [language, messages] = [wanted, loaded];
}

/** The locale of times. English times have 24 hours and the day before the month, as in the terminal. */
export const timeLocale = () => (language === 'en' ? 'en-GB' : language);

/**
 * Returns a text in the language in use.
 * @param {string} english two forms are separated by ` | `: `{n} job | {n} jobs`; `n` chooses one
 * @param {Record<string, string | number>} [values] what replaces `{name}`
 */
export function t(english, values = {}) {
  const forms = (messages[english] ?? english).split(' | ');
  const singular = forms.length > 1 && new Intl.PluralRules(language).select(values.n) === 'one';
  return (singular ? forms[0] : forms.at(-1)).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/**
 * Translates the texts of a document or a template: the elements with `data-t`, and the attributes that it names.
 * @param {ParentNode} root
 */
export function translate(root) {
  for (const element of root.querySelectorAll('[data-t]')) {
    const attributes = element.dataset.t.split(' ').filter(Boolean);
    if (!attributes.length) element.textContent = t(element.textContent.replace(/\s+/g, ' ').trim());
    for (const name of attributes) element.setAttribute(name, t(element.getAttribute(name)));
  }
}

/** Translates the page, and offers the languages in its footer. */
export async function translatePage() {
  await loadLanguage().catch(() => {}); // the server is away: English
  document.documentElement.lang = language;
  translate(document);
  for (const template of document.querySelectorAll('template')) translate(template.content);
  const select = document.createElement('select');
  select.setAttribute('aria-label', t('Language'));
  select.append(...Object.entries(LANGUAGES).map(([tag, name]) => new Option(name, tag)));
  select.value = language;
  select.addEventListener('change', () => {
    choose('language', select.value);
    location.reload();
  });
  document.querySelector('.colophon')?.append(select);
}
