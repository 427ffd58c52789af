/** Formats numbers, durations, sizes and times for a sentence, in the language in use. */

import { language, t, timeLocale } from './text.js';

const formats = new Map();

/** @param {number} value @param {number} [digits] behind the point */
export function number(value, digits = 0) {
  if (!formats.has(digits)) {
    const both = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    formats.set(digits, new Intl.NumberFormat(language, both));
  }
  return formats.get(digits).format(value);
}

/** @param {number} percent */
export const percentage = (percent) => new Intl.NumberFormat(language, { style: 'percent' }).format(percent / 100);

const two = (n) => String(n).padStart(2, '0');

/**
 * Formats how long an action took.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 0.05) return t('less than {n} s', { n: number(0.1, 1) });
  if (seconds < 9.95) return t('{n} s', { n: number(Math.max(0, seconds), 1) });
  if (seconds < 3599.5) return stopwatch(Math.round(seconds));
  return stopwatch(Math.round(seconds / 60) * 60);
}

/**
 * Formats an elapsed time in full seconds, for a number that changes once a second.
 * @param {number} seconds
 */
export function stopwatch(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (h) return t('{h} h {m} min', { h, m: two(m) });
  if (m) return t('{m} min {s} s', { m, s: two(s) });
  return t('{n} s', { n: s });
}

const WIDE = 1.6; // an interval is shown if its end is this many times its beginning

/**
 * Formats a forecast, rounded so that it does not flicker; empty once it has passed. The command line does the same.
 * @param {number} seconds
 * @param {number} [low] the beginning of the interval, seconds
 * @param {number} [high] its end
 */
export function remaining(seconds, low = seconds, high = seconds) {
  if (seconds <= 0) return '';
  if (seconds < 3) return t('nearly there');
  if (seconds >= 10 && high >= WIDE * low) {
    const [first, last] = [rounded(low, high), rounded(high, high)];
    const time = inUnit(first === last || Number(first) === 0 ? last : `${first}–${last}`, high);
    if (Number(first) === 0) return t('up to {time} left', { time });
    if (first !== last) return t('{time} left', { time });
  }
  if (seconds < 20) return t('{time} left', { time: inUnit(Math.ceil(seconds), 0) });
  return t('about {time} left', { time: inUnit(rounded(seconds, seconds), seconds) });
}

/** Adds the unit that fits the largest duration. */
function inUnit(n, largest) {
  if (largest < 90) return t('{n} s', { n });
  return largest < 5400 ? t('{n} min', { n }) : t('{n} h', { n });
}

/** Formats a duration without its unit, which fits the largest duration. */
function rounded(seconds, largest) {
  if (largest < 90) return String(seconds >= 20 ? Math.ceil(seconds / 5) * 5 : Math.round(seconds));
  if (largest < 5400) return String(Math.round(seconds / 60));
  return number(seconds / 3600, 1);
}

/**
 * Formats a size in powers of 1024, as the server does.
 * @param {number} bytes
 */
export function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  let [value, unit] = [bytes / 1024, 'KiB'];
  for (const larger of ['MiB', 'GiB']) if (value >= 999.95) [value, unit] = [value / 1024, larger];
  return `${number(value, value < 9.95 || unit !== 'KiB' ? 1 : 0)} ${unit}`;
}

const SIZES = [[1e15, 'PB'], [1e12, 'TB'], [1e9, 'GB'], [1e6, 'MB'], [1e3, 'kB'], [1, 'B']];
const scaleOf = (bytes) => SIZES.find(([factor]) => bytes >= factor) ?? [1, 'B'];

/**
 * Formats steps with their unit; empty if none are known. Bytes are in powers of 1000, as in the terminal.
 * @param {number} current @param {number} total 0 if unknown @param {string} [unit]
 */
export function steps(current, total, unit) {
  if (!current && !total) return '';
  const [factor, name] = unit === 'B' ? scaleOf(Math.max(current, total)) : [1, unit];
  const scaled = (value) => (factor > 1 ? number(value / factor, 1) : String(value));
  const [n, all] = [scaled(current), scaled(total)];
  if (!total) return [n, name].filter(Boolean).join(' ');
  return name ? t('{n} of {total} {unit}', { n, total: all, unit: name }) : t('{n} of {total}', { n, total: all });
}

/**
 * Formats a rate, such as 12.4 MB/s or 2.4 pages/min; empty if it is unknown.
 * @param {number} [perSecond] @param {string} [unit]
 */
export function rate(perSecond, unit) {
  if (perSecond === undefined || !unit) return '';
  if (unit === 'B') {
    const [factor, name] = scaleOf(perSecond);
    return `${number(perSecond / factor, factor > 1 ? 1 : 0)} ${name}/s`;
  }
  const slow = perSecond > 0 && perSecond < 0.1;
  const [value, per] = !slow ? [perSecond, 's'] : perSecond * 60 >= 0.1 ? [perSecond * 60, 'min'] : [perSecond * 3600, 'h'];
  return `${number(value, value >= 100 ? 0 : 1)} ${unit}/${per}`;
}

/** @param {string | number} time RFC 3339, or milliseconds since the epoch */
export function moment(time) {
  const date = new Date(time);
  const hour = { hour: '2-digit', minute: '2-digit' };
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(timeLocale(), today ? hour : { day: 'numeric', month: 'short', ...hour });
}
