/** The right to read: the key of this tab, or the token in the link that opened the page. */

import { currentKey } from './access.js';
import * as api from './api.js';

/** The token in the fragment of the address. Browsers send fragments to no server. */
export const token = new URLSearchParams(location.hash.slice(1)).get('token');

/** @returns {{token?: string, key?: string}} for `watch` */
export const pass = () => (token ? { token } : currentKey() === null ? {} : { key: currentKey() });

/** Like `send` and `request` of api.js, with the key or the token. */
export const send = (path) => api.send(path, { token });
export const request = (path, method, options) => api.request(path, method, { token, ...options });
