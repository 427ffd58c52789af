/** Watches one job, one batch or one log over a WebSocket that reconnects by itself. */

const OPEN_TIMEOUT_MS = 8000;
const SETTLE_MS = 300; // some proxies accept a WebSocket and close it at once
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;

/** Close codes 4500–4999 mean: do not reconnect. After 4500, reconnect only with another token. */
const EXPIRED = 4500;
const isFinal = (code) => code === 1000 || (code > EXPIRED && code <= 4999);

/**
 * @typedef {object} Message as in docs/protocol.md, or `connection` with the state of the connection
 * @property {string} type
 * @property {any} data
 * @property {string} [cursor]
 * @property {string} [time]
 */

/**
 * Yields the messages of a topic until it ends. Ends without an error if the server rejects the connection for good.
 * @param {string} url the address of the daemon
 * @param {{job?: string, batch?: string, log?: string, token?: string, key?: string, since?: string | number,
 *   signal?: AbortSignal}} options `since`: a cursor; for a log, an offset
 * @returns {AsyncGenerator<Message>}
 */
export async function* watch(url, { job, batch, log, token, key, since, signal }) {
  const path = log ? `ws/jobs/${log}/log` : batch ? `ws/batch/${batch}` : `ws/jobs/${job}`;
  const maker = log ? `api/jobs/${log}/token?log=true` : batch ? `api/batch/${batch}/token` : `api/jobs/${job}/token`;
  let at = since ?? null;
  let losses = 0;
  let isLost = true;
  while (!signal?.aborted) {
    let pass = token;
    if (!pass && key) {
      pass = await newToken(new URL(maker, url), key, signal).catch(() => null);
      if (pass === undefined) return;
    }
    let code;
    if (pass !== null || !key) {
      const target = new URL(path, url);
      target.protocol = target.protocol.replace('http', 'ws');
      if (at !== null) target.searchParams.set(log ? 'offset' : 'since', at);
      const protocols = pass ? ['progressd', `progressd.token.${pass}`] : [];
      for await (const text of framesOf(target, protocols, signal)) {
        if (typeof text === 'object') {
          if (text.open) yield connection('live');
          else ({ code } = text);
          isLost &&= !text.open;
          continue;
        }
        losses = 0;
        const message = parse(text);
        if (!message) continue;
        if (message.type === 'resync') at = null;
        if (message.cursor) at = message.cursor;
        if (message.type === 'log') at = message.data.offset;
        yield message;
      }
    }
    if (signal?.aborted || isFinal(code) || (code === EXPIRED && token)) return;
    if (!isLost) yield connection('reconnecting');
    isLost = true;
    losses += 1;
    await pause(delayAfter(losses), signal);
  }
}

const connection = (state) => ({ type: 'connection', data: { state, since: new Date().toISOString() } });

/** Yields the frames of a socket, and at last its close code. */
async function* framesOf(url, protocols, signal) {
  const arrived = [];
  let wake = () => {};
  const put = (item) => {
    arrived.push(item);
    wake();
  };
  const socket = new WebSocket(url, protocols);
  let opened = false;
  const open = () => {
    if (!opened) put({ open: true });
    opened = true;
  };
  let timer = setTimeout(() => put({ open: false }), OPEN_TIMEOUT_MS);
  socket.onopen = () => {
    clearTimeout(timer);
    timer = setTimeout(open, SETTLE_MS);
  };
  socket.onmessage = ({ data }) => {
    open();
    put(data);
  };
  socket.onclose = ({ code }) => put({ open: false, code });
  const stop = () => put({ open: false });
  signal?.addEventListener('abort', stop, { once: true });
  try {
    for (;;) {
      if (!arrived.length) await new Promise((resume) => { wake = resume; });
      for (const item of arrived.splice(0)) {
        yield item;
        if (item.open === false) return;
      }
    }
  } finally {
    signal?.removeEventListener('abort', stop);
    clearTimeout(timer);
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }
}

/** @returns {Promise<string | undefined>} undefined if the key is rejected */
async function newToken(url, key, signal) {
  const response = await fetch(url, { method: 'POST', headers: { Authorization: `Bearer ${key}` }, signal });
  if (response.ok) return (await response.json()).token;
  if (response.status < 500 && response.status !== 429) return undefined;
  throw new Error(`HTTP status ${response.status}`);
}

const pause = (milliseconds, signal) => new Promise((resume) => {
  const timer = setTimeout(resume, milliseconds);
  signal?.addEventListener('abort', () => { clearTimeout(timer); resume(); }, { once: true });
});

/** The delay doubles with every loss. Half of it is random, so that many pages do not reconnect at once. */
function delayAfter(losses) {
  const longest = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (losses - 1));
  return longest * (0.5 + Math.random() / 2);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // frames that cannot be parsed are ignored
  }
}
