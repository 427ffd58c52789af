/** The page of an error. The sentence of the server stays English. */

import './keys.js';
import { translatePage } from './text.js';

await translatePage();
