/** The intake: a drop zone, and a form for the options that the chosen pipeline of the server has. */

import { typed } from './access.js';
import { loadStyle } from './dom.js';
import { lazily } from './lazy.js';
import { choose, setting } from './settings.js';
import { t } from './text.js';

/** The pipeline that the user chose last at this server. */
const CHOICE = `pipeline ${new URL('.', document.baseURI).pathname}`;

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
  /** The module with the options, once they have been opened. */
  #options = null;

  /**
   * @param {HTMLFormElement} form
   * @param {(files: File[], pipeline: string, options: object, folder?: string) => void} onFiles
   * @param {(error: Error) => void} onError
   */
  constructor(form, onFiles, onError) {
    this.#form = form;
    this.#take = async (list, folder) => {
      let files = [...list];
      if (!this.#pipeline) return;
      if (form.closest('[hidden]')) return; // hidden without the right to submit, but files can be dropped
      if (this.#details.open && !this.#options) {
        try {
          await this.#open(); // entered before a reload
        } catch (error) {
          onError(error);
          return;
        }
      }
      if (folder) files = files.filter((one) => this.#accepts(one));
      if (files.length && form.reportValidity()) onFiles(files, this.#pipeline.name, this.#values(), folder);
    };
    const { file, pipeline } = form.elements;
    form.addEventListener('invalid', () => { this.#details.open = true; }, { capture: true });
    form.addEventListener('submit', (event) => event.preventDefault());
    pipeline.addEventListener('change', () => {
      choose(CHOICE, pipeline.value);
      this.#show();
    });
    file.addEventListener('change', () => this.#takeChosen());
    acceptDrops(document.documentElement, this.#take);
    const open = () => { if (this.#details.open && !this.#options) this.#open().catch(onError); };
    this.#details.addEventListener('toggle', open);
    this.#details.open ||= Object.keys(typed()).length > 0; // from before a reload
    open();
  }

  async #open() {
    const [options] = await Promise.all([lazily(() => import('./options.js'), false), loadStyle('options.css')]);
    if (this.#options) return;
    this.#options = options;
    this.#show();
  }

  #takeChosen() {
    if (!this.#pipeline) return; // `update` takes them
    const { file } = this.#form.elements;
    this.#take(file.files);
    file.value = ''; // so that choosing the same file again is a change
  }

  /** Shows the pipelines of the server. What the user has entered stays. @param {Pipeline[]} pipelines */
  update(pipelines) {
    if (JSON.stringify(pipelines) === JSON.stringify(this.#pipelines)) return;
    this.#pipelines = pipelines;
    const { pipeline: select } = this.#form.elements;
    const chosen = select.value || setting(CHOICE);
    select.replaceChildren(...pipelines.map(({ name, title }) => new Option(t(title), name)));
    const wanted = pipelines.find(({ name }) => name === chosen) ?? pipelines.find((one) => one.default) ?? pipelines[0];
    select.value = wanted?.name ?? '';
    select.closest('label').hidden = pipelines.length < 2;
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
    const { properties } = pipeline.schema;
    this.#options?.show(this.#fields, properties);
    const { file, pipeline: select } = this.#form.elements;
    this.#details.hidden = !Object.keys(properties).length && select.closest('label').hidden;
    file.accept = pipeline.accept.includes('*/*') ? '' : [...pipeline.extensions, ...pipeline.accept].join();
    const isPdf = pipeline.accept.join() === 'application/pdf';
    const set = (part, text) => { this.#form.querySelector(`[data-part=${part}]`).textContent = text; };
    set('drop', isPdf ? t('Drop PDFs here') : t('Drop files here'));
    set('choose', isPdf ? t('Choose PDFs') : t('Choose files'));
    set('about', pipeline.description ? t(pipeline.description) : '');
  }

  /** @returns {Record<string, boolean|number|string>} none that the user has not seen: the server has the same defaults */
  #values() {
    return this.#options?.valuesOf(this.#fields, this.#pipeline.schema.properties) ?? {};
  }
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
