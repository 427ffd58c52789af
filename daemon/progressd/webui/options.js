/** The form with the options of a pipeline. It is loaded when it is opened. */

import { keepTyped, typed } from './access.js';
import { t } from './text.js';

/** @typedef {import('./intake.js').Option} Option */

/** Builds the form. Values that fit the options stay. @param {HTMLElement} root @param {Record<string, Option>} properties */
export function show(root, properties) {
  const entered = typed();
  root.replaceChildren(...Object.entries(properties).map(([name, option]) => field(name, option, entered[name])));
}

/** @returns {Record<string, boolean|number|string>} */
export function valuesOf(root, properties) {
  const values = {};
  for (const [name, option] of Object.entries(properties)) {
    const value = valueOf(root.querySelector(`[name="${CSS.escape(name)}"]`), option);
    if (value !== undefined) values[name] = value;
  }
  return values;
}

/** @param {string} name @param {Option} option @param {{type: string, value: any}} [before] what the user has entered for it */
function field(name, option, before) {
  const isOpen = option.type === 'boolean' && option.default === undefined; // a switch has no third position
  const input = option.enum || isOpen ? select(option) : control(option);
  input.name = name;
  const missing = option['x-available'] === false;
  input.disabled = missing;
  if (before?.type === input.type && !missing) {
    input[propertyOf(input)] = before.value;
  }
  input.addEventListener('input', () => keepTyped({ ...typed(), [name]: { type: input.type, value: input[propertyOf(input)] } }));
  const label = document.createElement('label');
  label.className = 'option';
  const title = document.createElement('span');
  title.className = 'option-name';
  title.append(`${t(option.title ?? name)} `);
  const hint = document.createElement('span');
  hint.className = 'hint';
  hint.textContent = missing
    ? t('Not available: the server needs {program}', { program: option['x-needs'] })
    : t(option.description ?? '');
  if (hint.textContent) title.append(hint);
  label.append(title, input);
  if (option.examples) label.append(offer(input, option.examples));
  return label;
}

const propertyOf = ({ type }) => (type === 'checkbox' ? 'checked' : 'value');

/** Offers values for a text field. Those in the languages of the user come first. */
function offer(input, values) {
  const list = document.createElement('datalist');
  list.id = `values-of-${input.name}`;
  input.setAttribute('list', list.id);
  list.append(...[...values].sort((a, b) => rank(a) - rank(b) || 0).map((value) => new Option('', value)));
  return list;
}

/** Three letters of a language, as in ISO 639-2, for the two of the browser. */
const LETTERS = { ja: 'jpn', en: 'eng', de: 'deu', fr: 'fra', es: 'spa', it: 'ita', pt: 'por', ko: 'kor', zh: 'chi' };

/** @param {string} value such as `jpn` @returns {number} its place among the languages of the browser */
function rank(value) {
  const place = navigator.languages.findIndex((tag) => {
    const letters = LETTERS[tag.split('-')[0]];
    return letters && value.startsWith(letters);
  });
  return place < 0 ? Infinity : place;
}

/** Returns a word with a capital letter. Abbreviations, such as those of languages, stay as they are. */
const title = (choice) => (/^[a-z]{4,}$/.test(choice) ? choice[0].toUpperCase() + choice.slice(1) : choice);

/** @param {Option} option */
function select(option) {
  const input = document.createElement('select');
  input.className = 'choice';
  const words = { true: t('On'), false: t('Off'), '': t('Default') };
  const values = (option.enum ?? [true, false]).map(String);
  if (option.default === undefined) values.unshift('');
  input.append(...values.map((value) => new Option(words[value] ?? t(title(value)), value)));
  input.value = String(option.default ?? '');
  return input;
}

/** @param {Option} option */
function control({ type, default: initial, minimum, maximum, maxLength }) {
  const input = document.createElement('input');
  if (type === 'boolean') {
    input.type = 'checkbox';
    input.className = 'switch';
    input.defaultChecked = initial === true;
  } else if (type === 'string') {
    input.type = 'text';
    input.className = 'text';
    input.maxLength = maxLength;
    input.defaultValue = initial ?? '';
  } else {
    input.type = 'number';
    input.className = 'number';
    input.step = type === 'integer' ? '1' : 'any';
    input.min = minimum ?? '';
    input.max = maximum ?? '';
    input.required = initial !== undefined;
    input.defaultValue = initial ?? '';
  }
  return input;
}

/** @returns {boolean|number|string|undefined} undefined for an empty field of an option without a default */
function valueOf(input, option) {
  if (input.type === 'checkbox') return input.checked;
  if (input.value === '' && option.default === undefined) return undefined;
  if (option.type === 'boolean') return input.value === 'true';
  return option.type === 'string' ? input.value : Number(input.value);
}
