/** The page of an error, which the server renders in the language of the browser. The choice on this site may differ. */

import './keys.js';
import { language, translatePage } from './text.js';

const rendered = document.documentElement.lang;
await translatePage();
if (language !== rendered) {
  const headers = { Accept: 'text/html', 'Accept-Language': language };
  const page = await fetch(location.href, { headers }).then((response) => response.text()).catch(() => '');
  const main = new DOMParser().parseFromString(page, 'text/html').querySelector('main');
  if (main) document.querySelector('main').replaceWith(main);
  else document.documentElement.lang = rendered; // below /api, only a navigation gets a page
}
