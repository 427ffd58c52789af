/** The intake: a drop zone, and a form for the options that the chosen pipeline of the server has. */

import { keepTyped, typed } from './access.js';
import { chosenPipeline, rememberPipeline } from './remembered.js';
import { t } from './text.js';

/**
 * A pipeline of the server.
 * @typedef {object} Pipeline
 * @property {string} name
 * @property {string} title
 * @property {string} [description]
 * @property {string[]} accept MIME types
 * @property {string[]} extensions
 * @property {{properties: Record<string, Option>}} schema
 * @property {boolean} [default]
 *
 * @typedef {object} Option
 * @property {'boolean'|'integer'|'number'|'string'} type
 * @property {string} [title] @property {string} [description]
 * @property {boolean|number|string} [default]
 * @property {number} [minimum] @property {number} [maximum] @property {number} [maxLength]
 * @property {(boolean|number|string)[]} [enum]
 * @property {string[]} [examples] values to choose from; others are possible
 * @property {string} [x-needs] a program @property {boolean} [x-available] whether the server has it
 */

export class Intake {
  #form;
  /** @type {(files: Iterable<File>, folder?: string) => void} */
  #take;
  /** @type {Pipeline[]} */
  #pipelines = [];

  /**
   * @param {HTMLFormElement} form
   * @param {(files: File[], pipeline: string, options: object, folder?: string) => void} onFiles
   */
  constructor(form, onFiles) {
    this.#form = form;
    this.#take = (list, folder) => {
      let files = [...list];
      if (!this.#pipeline) return;
      if (form.closest('[hidden]')) return; // hidden without the right to submit, but files can be dropped
      if (folder) files = files.filter((one) => this.#accepts(one));
      if (files.length && form.reportValidity()) onFiles(files, this.#pipeline.name, this.#options(), folder);
    };
    const { file, pipeline } = form.elements;
    form.addEventListener('invalid', () => { this.#details.open = true; }, { capture: true });
    form.addEventListener('submit', (event) => event.preventDefault());
    pipeline.addEventListener('change', () => {
      rememberPipeline(pipeline.value);
      this.#show();
    });
    file.addEventListener('change', () => this.#takeChosen());
    acceptDrops(document.documentElement, this.#take);
  }

  #takeChosen() {
    const { file } = this.#form.elements;
    this.#take(file.files);
    file.value = ''; // so that choosing the same file again is a change
  }

  /** Shows the pipelines of the server. What the user has entered stays. @param {Pipeline[]} pipelines */
  update(pipelines) {
    if (JSON.stringify(pipelines) === JSON.stringify(this.#pipelines)) return;
    this.#pipelines = pipelines;
    const { pipeline: select } = this.#form.elements;
    const chosen = select.value || chosenPipeline();
    select.replaceChildren(...pipelines.map(({ name, title }) => new Option(t(title), name)));
    const wanted = pipelines.find(({ name }) => name === chosen) ?? pipelines.find((one) => one.default) ?? pipelines[0];
    select.value = wanted?.name ?? '';
    select.closest('label').hidden = pipelines.length < 2;
    this.#form.toggleAttribute('data-without-pipelines', !pipelines.length);
    this.#show();
    if (this.#form.elements.file.files.length) this.#takeChosen(); // chosen while this module was loading
  }

  /** @returns {Pipeline | undefined} */
  get #pipeline() {
    return this.#pipelines.find(({ name }) => name === this.#form.elements.pipeline.value);
  }

  /** Whether a file of a folder has the name of an accepted one. The server checks the file itself. */
  #accepts({ name }) {
    const { extensions } = this.#pipeline;
    return !name.startsWith('.') && (!extensions.length || extensions.some((one) => name.toLowerCase().endsWith(one)));
  }

  get #details() {
    return this.#form.querySelector('details');
  }

  get #fields() {
    return this.#form.querySelector('[data-part=fields]');
  }

  /** Builds the form of the chosen pipeline. Values that fit its options stay. */
  #show() {
    const pipeline = this.#pipeline;
    if (!pipeline) return;
    const entered = typed();
    const properties = Object.entries(pipeline.schema.properties);
    this.#fields.replaceChildren(...properties.map(([name, option]) => field(name, option, entered[name])));
    const { file, pipeline: select } = this.#form.elements;
    this.#details.hidden = !properties.length && select.closest('label').hidden;
    file.accept = pipeline.accept.includes('*/*') ? '' : [...pipeline.extensions, ...pipeline.accept].join();
    const isPdf = pipeline.accept.join() === 'application/pdf';
    const set = (part, text) => { this.#form.querySelector(`[data-part=${part}]`).textContent = text; };
    set('drop', isPdf ? t('Drop PDFs here') : t('Drop files here'));
    set('choose', isPdf ? t('Choose PDFs') : t('Choose files'));
    set('about', pipeline.description ? t(pipeline.description) : '');
  }

  /** @returns {Record<string, boolean|number|string>} */
  #options() {
    const options = {};
    for (const [name, option] of Object.entries(this.#pipeline.schema.properties)) {
      const value = valueOf(this.#fields.querySelector(`[name="${CSS.escape(name)}"]`), option);
      if (value !== undefined) options[name] = value;
    }
    return options;
  }
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

/** Files can be dropped anywhere on the page. `data-dragging` is set while they hover over it. */
function acceptDrops(root, take) {
  let depth = 0; // dragenter of a child precedes dragleave of its parent
  const hover = (change) => {
    depth = Math.max(0, depth + change);
    root.toggleAttribute('data-dragging', depth > 0);
  };
  const forFiles = (handle) => (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    handle(event);
  };
  root.addEventListener('dragenter', forFiles(() => hover(1)));
  root.addEventListener('dragleave', forFiles(() => hover(-1)));
  root.addEventListener('dragover', forFiles((event) => { event.dataTransfer.dropEffect = 'copy'; }));
  root.addEventListener('drop', forFiles(async ({ dataTransfer }) => {
    hover(-depth);
    const entries = [...dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const folder = entries.find(({ isDirectory }) => isDirectory);
    const files = [...dataTransfer.files]; // only now: later, the browser empties it
    take(folder ? await filesIn(entries) : files, folder?.name);
  }));
}

/** @param {FileSystemEntry[]} entries @returns {Promise<File[]>} also those of folders in folders */
async function filesIn(entries) {
  const found = entries.map((entry) => (entry.isDirectory
    ? childrenOf(entry.createReader()).then(filesIn)
    : new Promise((resolve, reject) => { entry.file((file) => resolve([file]), reject); })));
  return (await Promise.all(found)).flat();
}

/** The browser returns at most 100 entries at a time. @param {FileSystemDirectoryReader} reader */
async function childrenOf(reader) {
  const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
  return some.length ? [...some, ...await childrenOf(reader)] : [];
}
