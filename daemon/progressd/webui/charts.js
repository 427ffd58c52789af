/** Small charts of one value over time, drawn by hand. */

import { drawing, element } from './dom.js';
import { language, t } from './text.js';

const WIDTH = 240;
const HEIGHT = 60;

/**
 * @param {{title: string, kind?: string, points: [number, number][], format?: (value: number) => string}} options
 *   `points`: times in milliseconds and values
 * @returns {HTMLElement}
 */
export function chart({ title, kind = '', points, format = plainNumber }) {
  const values = points.map(([, value]) => value);
  const most = Math.max(...values, 0);
  const last = values.at(-1) ?? 0;
  const [from, to] = [points[0]?.[0] ?? 0, points.at(-1)?.[0] ?? 1];
  const place = ([time, value]) => `${(WIDTH * (time - from) / Math.max(1, to - from)).toFixed(1)} ${(HEIGHT - HEIGHT * value / (most || 1)).toFixed(1)}`;
  const path = points.map(place).join(' L ');
  const label = t('{title}: now {now}, peak {most}', { title, now: format(last), most: format(most) });
  const svg = drawing('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label },
    drawing('line', { class: 'floor', x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }));
  if (points.length > 1) {
    svg.prepend(drawing('path', { class: 'area', d: `M ${path} L ${WIDTH} ${HEIGHT} L 0 ${HEIGHT} Z` }), drawing('path', { class: 'line', d: `M ${path}` }));
  }
  const minutes = Math.round((to - from) / 60_000);
  return element('figure', { class: 'chart', 'data-kind': kind },
    element('figcaption', {}, element('span', {}, title), element('b', {}, format(last))), svg,
    element('div', { class: 'bounds', 'aria-hidden': 'true' },
      element('span', {}, minutes ? t('{n} min ago', { n: minutes }) : ''),
      element('span', {}, t('peak {most}', { most: format(most) }))));
}

const digits = (value) => (value < 1 ? { maximumSignificantDigits: 1 } : { maximumFractionDigits: value < 10 ? 1 : 0 });
const plainNumber = (value) => new Intl.NumberFormat(language, digits(value)).format(value);
