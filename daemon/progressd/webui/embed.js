/** `/embed/ID#token=TOKEN`: one job for an iframe. `theme`, `lang` and `compact` may be in the fragment too. */

import './progressd-job.js';

const given = new URLSearchParams(location.hash.slice(1));
const query = new URLSearchParams(location.search);
const element = document.createElement('progressd-job');
element.setAttribute('job', location.pathname.split('/').at(-1));
for (const name of ['token', 'theme', 'lang', 'compact']) {
  const value = given.get(name) ?? query.get(name);
  if (value !== null) element.setAttribute(name, value);
}
const theme = element.getAttribute('theme');
if (theme) document.documentElement.dataset.theme = theme;
document.body.append(element);
