/** What the elements of progressd share: attributes, the watch, the message about the connection, colours. */

import { COLORS } from './colors.js';
import { watch } from './progressd.js';
import { language, languagesOf, loadLanguage, sentence, t, timeLocale } from './text.js';

/** The daemon that this module comes from. */
const ROOT = import.meta.url.replace(/static\/[^?#]*.*$/, '');

/** A short loss of the connection is not worth a message. */
const PATIENCE_MS = 5000;

const SHARED = ['url', 'token', 'token-url', 'key', 'lang', 'theme', 'compact'];

const sheet = new CSSStyleSheet();
sheet.replaceSync(`
:host {
  --text: var(--progressd-text, ${COLORS.ink});
  --soft: var(--progressd-soft, ${COLORS.soft});
  --track: var(--progressd-track, ${COLORS.track});
  --running: var(--progressd-running, ${COLORS.running});
  --done: var(--progressd-done, ${COLORS.done});
  --failed: var(--progressd-failed, ${COLORS.failed});
  --stalled: var(--progressd-stalled, ${COLORS.caution});
  --idle: var(--progressd-idle, ${COLORS.soft});
  display: block;
  color: var(--text);
  background: var(--progressd-background, none);
  font: var(--progressd-font, inherit);
  line-height: 1.45;
  font-variant-numeric: tabular-nums;
}
:host([hidden]), [hidden] { display: none !important; }
:host([theme=light]) { color-scheme: light; }
:host([theme=dark]) { color-scheme: dark; }
p, ul { margin: 0; padding: 0; list-style: none; }
.card { --state: var(--idle); display: grid; gap: .25em; container-type: inline-size; }
.card[data-status=processing] { --state: var(--running); }
.card[data-status=completed] { --state: var(--done); }
.card[data-status=failed] { --state: var(--failed); }
.card[data-status=partially_completed], .card[data-stalled] { --state: var(--stalled); }
.card[data-away] > :not(.message) { opacity: .5; }
.line { display: flex; gap: .25em .75em; align-items: baseline; min-width: 0; }
.grow { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.name { font-weight: 600; }
.figure { color: var(--state); font-weight: 600; white-space: nowrap; }
.small { font-size: .875em; color: var(--soft); }
.bar { height: .375em; border-radius: 1em; overflow: hidden; background: var(--track); }
.fill {
  height: 100%;
  border-radius: inherit;
  background: var(--state);
  transform: scaleX(0);
  transform-origin: left;
  transition: transform .5s cubic-bezier(.2, .7, .3, 1);
}
.bar[data-open-ended] .fill { width: 30%; transform: none; animation: wander 2.4s ease-in-out infinite alternate; }
@keyframes wander { to { transform: translateX(calc(100% * 7 / 3)); } }
@media (prefers-reduced-motion: reduce) {
  .fill { transition: none; }
  .bar[data-open-ended] .fill { width: 100%; opacity: .4; animation: none; }
}
a { color: var(--running); text-underline-offset: .2em; }
a:focus-visible { outline: 2px solid; outline-offset: 2px; border-radius: 2px; }
.message { color: var(--failed); font-size: .875em; overflow-wrap: anywhere; }
.message[data-passing] { color: var(--stalled); }
:host([compact]) .card { grid-template-columns: minmax(0, 1fr) minmax(4em, 12em) 3.5em; align-items: center; gap: .75em; }
:host([compact]) .line { display: contents; }
:host([compact]) .figure { order: 3; text-align: right; }
:host([compact]) .foot, :host([compact]) ul { display: none; }
:host([compact]) .message { grid-column: 1 / -1; order: 4; }
@media (forced-colors: active) {
  .bar { border: 1px solid CanvasText; }
  .fill { forced-color-adjust: none; background: Highlight; }
}
`);

/** An element that watches something. Its class gives the content and says what a message changes. */
export class ProgressdElement extends HTMLElement {
  #watch = null;
  #restarting = false;
  #drawing = 0;
  #overdue = 0;
  #token = null; // a function that the page gave
  #early = [];

  /** @param {string[]} own attributes that select what is watched */
  static attributes = (...own) => [...own, ...SHARED];

  /** @param {string} html the content, without text @param {CSSStyleSheet[]} sheets */
  constructor(html, ...sheets) {
    super();
    const given = Object.entries(this); // properties from before this class was loaded
    const root = this.attachShadow({ mode: 'open' });
    root.adoptedStyleSheets = [sheet, ...sheets];
    root.innerHTML = html;
    for (const [name, value] of given) {
      delete this[name];
      this.#early.push([name, value]);
    }
    this.parts = Object.fromEntries([...root.querySelectorAll('[data-part]')].map((part) => [part.dataset.part, part]));
  }

  connectedCallback() {
    for (const [name, value] of this.#early.splice(0)) this[name] = value;
    this.#restart();
  }

  disconnectedCallback() {
    this.#stop();
  }

  attributeChangedCallback(name, before, after) {
    if (before !== after && name !== 'theme' && name !== 'compact') this.#restart();
  }

  /** The daemon; by default the one that this module comes from. */
  get url() {
    return new URL(this.getAttribute('url') ?? ROOT, document.baseURI).href.replace(/\/?$/, '/');
  }

  /** A watch token, or a function that returns one (or a promise of it) each time that one is needed. */
  get token() {
    return this.#token ?? this.getAttribute('token') ?? this.#tokenFromUrl();
  }

  set token(token) {
    this.#token = typeof token === 'function' ? token : null;
    if (this.#token) this.#restart();
    else this.#reflect('token', token);
  }

  get key() {
    return this.getAttribute('key') ?? undefined;
  }

  set key(key) {
    this.#reflect('key', key);
  }

  set url(url) {
    this.#reflect('url', url);
  }

  /** Properties and attributes are the same, as frameworks expect. */
  #reflect(name, value) {
    if (value === undefined || value === null) this.removeAttribute(name);
    else this.setAttribute(name, value);
  }

  /** @param {string} name what is watched: its property is the attribute */
  static reflects(name) {
    Object.defineProperty(this.prototype, name, {
      get() { return this.getAttribute(name) ?? undefined; },
      set(value) { this.#reflect(name, value); },
    });
    return this.attributes(name);
  }

  /** The site's own address that returns a token, as text or as `{"token": "…"}`. */
  #tokenFromUrl() {
    const url = this.getAttribute('token-url');
    if (!url) return undefined;
    return async () => {
      const response = await fetch(new URL(url, document.baseURI), { credentials: 'same-origin' });
      if (!response.ok) throw new Error(`${url} answered with HTTP status ${response.status}`);
      const text = (await response.text()).trim();
      return text.startsWith('{') ? JSON.parse(text).token : text;
    };
  }

  #restart() {
    if (this.#restarting) return;
    this.#restarting = true;
    queueMicrotask(async () => {
      await loadLanguage(languagesOf(this)).catch(() => {}); // the server is away: English
      this.#restarting = false;
      this.#stop();
      if (this.isConnected) this.#begin();
    });
  }

  #begin() {
    const topic = this.begin();
    this.parts.card.lang = language;
    this.tell('');
    this.redraw();
    if (!topic) return;
    const { token, key } = this;
    const watching = this.#watch = watch(this.url, { ...topic, token, key });
    watching.on('connection', ({ data }) => this.#connected(data));
    watching.on('message', (message) => {
      if (this.receive(message)) this.changed();
    });
    watching.addEventListener('refused', ({ detail }) => this.#refused(detail));
  }

  #stop() {
    clearTimeout(this.#overdue);
    this.#watch?.close();
    this.#watch = null;
  }

  #connected({ state, since }) {
    clearTimeout(this.#overdue);
    if (state === 'reconnecting') {
      this.#overdue = setTimeout(() => this.#away(since), PATIENCE_MS);
      return;
    }
    this.parts.card.removeAttribute('data-away');
    this.tell('');
    this.live();
  }

  #away(since) {
    const time = new Date(since).toLocaleTimeString(timeLocale(), { timeStyle: 'short' });
    const { host } = new URL(this.url);
    this.parts.card.setAttribute('data-away', '');
    const isShown = this.isShown();
    this.tell(isShown ? t('No connection since {time}. What you see is from then.', { time })
      : t('{host} cannot be reached. This page tries again by itself.', { host }), true);
    this.redraw();
  }

  #refused(error) {
    this.tell(sentenceFor(error, this.url));
    this.dispatchEvent(new CustomEvent('progressd-refused', { detail: error, bubbles: true, composed: true }));
  }

  /** Tells the page of a change, and draws it soon. */
  changed(type = 'change', detail = this.state) {
    this.redraw();
    this.dispatchEvent(new CustomEvent(`progressd-${type}`, { detail, bubbles: true, composed: true }));
  }

  redraw() {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.draw();
    });
  }

  /** @param {string} sentence empty to clear it */
  tell(sentence, passing = false) {
    const { message } = this.parts;
    if (message.textContent !== sentence) message.textContent = sentence;
    message.toggleAttribute('data-passing', passing);
    message.hidden = !sentence;
    if (sentence) this.redraw();
  }

  /** The connection stands, for the first time or again. */
  live() {}

  /** Whether there is something on the screen already. */
  isShown() {
    return Boolean(this.state);
  }
}

/** The text of an error for the visitors of a page. */
export function sentenceFor(error, url) {
  const { host } = new URL(url);
  switch (error.code) {
    case 'origin':
      return t('{host} does not show its jobs on pages of {origin}. Its setting server.allowed_origins lists the sites that may.',
        { host, origin: location.origin });
    case 'insecure':
      return t('A page with https cannot show jobs of {host}, which has no https.', { host });
    case 'unauthorized':
    case 'credentials_expired':
      return t('The link to this job has expired, or is not valid.');
    case 'forbidden':
      return t('This link does not allow that.');
    case 'not_found':
    case 'job_deleted':
      return t('This job does not exist, or was deleted.');
    default:
      return sentence(error.message, error.code);
  }
}

/** Shows a percentage; null: work without a known end. */
export function setBar(bar, percent, name, spoken) {
  const fill = bar.firstElementChild;
  bar.toggleAttribute('data-open-ended', percent === null);
  if (percent === null) bar.removeAttribute('aria-valuenow');
  else bar.setAttribute('aria-valuenow', String(percent));
  bar.setAttribute('aria-label', name);
  bar.setAttribute('aria-valuetext', spoken);
  fill.style.transform = percent === null ? '' : `scaleX(${percent / 100})`;
}
