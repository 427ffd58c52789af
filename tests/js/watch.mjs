// node watch.mjs MODULE URL OPTIONS: print each message. `hold`: after `hello`, wait for a line on stdin.

import { createInterface } from 'node:readline';

const [module, url, text] = process.argv.slice(2);
const { blocked = [], hold = false, ...options } = JSON.parse(text);
const { fetch } = globalThis;
globalThis.fetch = (target, how) => {
  if (blocked.some((part) => String(target).includes(part))) return Promise.reject(new TypeError('blocked'));
  return fetch(target, how);
};
const { watch } = await import(module);
const input = createInterface({ input: process.stdin });
const line = new Promise((resolve) => input.once('line', resolve));
try {
  for await (const message of watch(url, options)) {
    console.log(JSON.stringify(message));
    if (message.type === 'hello' && hold) await line;
  }
  console.log('{"type":"over"}');
} catch ({ message, code, status }) {
  console.log(JSON.stringify({ type: 'refused', message, code, status }));
}
input.close();
