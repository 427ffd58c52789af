/** The page of an error. The sentence of the server stays English. */

import { language, loadLanguage, translate } from './text.js';

await loadLanguage();
document.documentElement.lang = language;
translate(document);
