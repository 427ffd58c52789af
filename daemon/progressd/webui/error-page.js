/** The page of an error. The sentence of the server stays English. */

import { translatePage } from './text.js';

await translatePage();
