/** Formats durations, sizes and times for a sentence. */

const two = (n) => String(n).padStart(2, '0');

/**
 * Formats how long an action took.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 0.05) return 'less than 0.1 s';
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
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
  if (h) return `${h} h ${two(m)} min`;
  if (m) return `${m} min ${two(s)} s`;
  return `${s} s`;
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
  if (seconds < 3) return 'nearly there';
  if (seconds >= 10 && high >= WIDE * low) {
    const [first, last, unit] = [rounded(low, high), rounded(high, high), unitOf(high)];
    if (Number(first) === 0) return `up to ${last} ${unit} left`;
    if (first !== last) return `${first}–${last} ${unit} left`;
  }
  if (seconds < 20) return `${Math.ceil(seconds)} s left`;
  return `about ${rounded(seconds, seconds)} ${unitOf(seconds)} left`;
}

const unitOf = (seconds) => (seconds < 90 ? 's' : seconds < 5400 ? 'min' : 'h');

/** Formats a duration without its unit, which fits the largest duration. */
function rounded(seconds, largest) {
  if (largest < 90) return String(seconds >= 20 ? Math.ceil(seconds / 5) * 5 : Math.round(seconds));
  if (largest < 5400) return String(Math.round(seconds / 60));
  return (seconds / 3600).toFixed(1);
}

/**
 * Formats a size in powers of 1024, as the server does.
 * @param {number} bytes
 */
export function size(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  let [value, unit] = [bytes / 1024, 'KiB'];
  for (const larger of ['MiB', 'GiB']) if (value >= 999.95) [value, unit] = [value / 1024, larger];
  return `${value.toFixed(value < 9.95 || unit !== 'KiB' ? 1 : 0)} ${unit}`;
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
  const number = (value) => (factor > 1 ? (value / factor).toFixed(1) : String(value));
  return [total ? `${number(current)} of ${number(total)}` : number(current), name].filter(Boolean).join(' ');
}

/**
 * Formats a rate, such as 12.4 MB/s or 2.4 pages/min; empty if it is unknown.
 * @param {number} [perSecond] @param {string} [unit]
 */
export function rate(perSecond, unit) {
  if (perSecond === undefined || !unit) return '';
  if (unit === 'B') {
    const [factor, name] = scaleOf(perSecond);
    return `${(perSecond / factor).toFixed(factor > 1 ? 1 : 0)} ${name}/s`;
  }
  const slow = perSecond > 0 && perSecond < 0.1;
  const [value, per] = !slow ? [perSecond, 's'] : perSecond * 60 >= 0.1 ? [perSecond * 60, 'min'] : [perSecond * 3600, 'h'];
  return `${value >= 100 ? Math.round(value) : value.toFixed(1)} ${unit}/${per}`;
}

const hour = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit' });
const day = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });

/** @param {string} iso RFC 3339 */
export function moment(iso) {
  const date = new Date(iso);
  const today = date.toDateString() === new Date().toDateString();
  return today ? hour.format(date) : `${day.format(date)}, ${hour.format(date)}`;
}

/** @param {number} n @param {string} noun */
export const count = (n, noun) => `${n} ${noun}${n === 1 ? '' : 's'}`;
