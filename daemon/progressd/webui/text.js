/** The language of the page. The English text in the code is also its key: an untranslated text stays English. */

import { choose, setting } from './settings.js';

const LANGUAGES = { en: 'English', ja: '日本語' };

const TRANSLATED = ['reason', 'status', 'old', 'new']; // placeholders for a sentence or a word that is translated too
const MAX_LENGTH = 2000; // characters of a sentence of the server; a longer one stays English

let messages = {};
let codes = {}; // sentences for the codes of errors
let templates = [];

/** The language in use, for `Intl`. */
export let language = 'en';

/**
 * Loads a language. Call it before anything is shown.
 * @param {readonly string[]} [preferred] language tags, the best first
 */
export async function loadLanguage(preferred = languagesOf(document.documentElement)) {
  const wanted = preferred.map((tag) => tag.split('-')[0]).find((tag) => Object.hasOwn(LANGUAGES, tag)) ?? 'en';
  const [loaded, ofServer] = wanted === 'en' ? [{}, {}] : await Promise.all([
    import(`./languages/${wanted}.js`).then((module) => module.default),
    fetch(new URL(`./languages/sentences.${wanted}.json`, import.meta.url)).then((response) => response.json()).catch(() => ({})),
  ]);
  [language, messages, codes] = [wanted, loaded, ofServer.codes ?? {}];
  templates = Object.entries(ofServer.sentences ?? {}).map(template).sort((a, b) => b.rank - a.rank);
}

/**
 * The languages of an element, the best first: its own or that of its page, then those of the browser. The pages of the
 * daemon (`data-own`) have the one that the user has chosen.
 * @param {Element} element @returns {string[]}
 */
export function languagesOf(element) {
  return [element.closest('[lang]:not([data-own])')?.lang ?? setting('language') ?? '', ...navigator.languages];
}

/** Prepares to find the values of a template: the text around its placeholders, and a pattern. */
function template([english, translation]) {
  const parts = english.split(/\{(\w+)\}/);
  const literals = parts.filter((part, index) => index % 2 === 0 && part);
  const escaped = (part) => part.replace(/[$()*+.?[\\\]^{|}]/g, '\\$&');
  const pattern = parts.map((part, index) => (index % 2 ? `(?<${part}>.+?)` : escaped(part))).join('');
  const rank = literals.join('').length - (parts[0] ? 0 : MAX_LENGTH); // one that begins with a value fits less
  return { translation, literals, pattern, rank };
}

/**
 * Returns a sentence of the server, such as an error, in the language in use. Its values stay. An unknown sentence stays
 * English, after a sentence for its code. `languages/translation.py` does the same.
 * @param {string} english
 * @param {string} [code] the code of an error of the REST API
 */
export function sentence(english, code) {
  for (const { translation, literals, pattern } of english.length > MAX_LENGTH ? [] : templates) {
    if (!literals.every((literal) => english.includes(literal))) continue;
    const found = new RegExp(`^${pattern}$`, 's').exec(english);
    if (!found) continue;
    const values = { ...found.groups };
    for (const name of TRANSLATED) if (values[name]) values[name] = sentence(values[name]);
    return filled(translation, values);
  }
  return Object.hasOwn(codes, code ?? '') ? `${codes[code]}（${english}）` : english;
}

const filled = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);

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
  return filled(singular ? forms[0] : forms.at(-1), values);
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
