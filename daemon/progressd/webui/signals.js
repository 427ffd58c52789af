/** What the tab of the browser shows: the overall percentage, failures, and a lost connection. */

import { isOpenEnded } from './jobs.js';
import { t } from './text.js';

const COLORS = { running: '#4a67e3', failed: '#d0453a', away: '#8b93a7' };
const LENGTH = 2 * Math.PI * 12;

let icon = '';

/**
 * @param {Iterable<import('./jobs.js').Job>} jobs
 * @param {{failures: number, isAway: boolean}} state `failures`: since the user last looked at the page
 */
export function showSignals(jobs, { failures, isAway }) {
  const { running, measured, percent } = overall(jobs);
  document.title = isAway ? t('No connection – progressd') : titleOf(running, measured, percent, failures);
  const share = measured ? percent / 100 : running ? 0.25 : null;
  showIcon(isAway ? 'away' : failures ? 'failed' : 'running', isAway ? null : share);
}

function overall(jobs) {
  let [running, measured, sum] = [0, 0, 0];
  for (const job of jobs) {
    if (job.status !== 'processing') continue;
    running += 1;
    if (isOpenEnded(job)) continue;
    measured += 1;
    sum += job.progress?.percent ?? 0;
  }
  return { running, measured, percent: measured ? Math.floor(sum / measured) : 0 };
}

function titleOf(running, measured, percent, failures) {
  if (failures) {
    return running
      ? t('{n} failed, {percent}% – progressd', { n: failures, percent })
      : t('{n} failed – progressd', { n: failures });
  }
  if (!running) return 'progressd';
  if (!measured) return t('{n} job running – progressd | {n} jobs running – progressd', { n: running });
  const values = { n: measured, percent };
  return measured === 1 ? t('{percent}% – progressd', values) : t('{percent}% of {n} jobs – progressd', values);
}

/** @param {keyof COLORS} state @param {number | null} share null for the icon at rest */
function showIcon(state, share) {
  const key = `${state} ${share}`;
  if (key === icon) return;
  icon = key;
  const arc = (share ?? 0.8) * LENGTH;
  const start = share === null ? '' : 'transform="rotate(-90 16 16)"';
  const dot = state === 'failed' ? `<circle cx="25" cy="7" r="7" fill="${COLORS.failed}"/>` : '';
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><g fill="none" stroke-width="5"
 stroke-linecap="round"><circle cx="16" cy="16" r="12" stroke="#8b93a7" stroke-opacity=".35"/><circle cx="16" cy="16"
 r="12" stroke="${COLORS[state === 'away' ? 'away' : 'running']}" stroke-dasharray="${arc} ${LENGTH}" ${start}/></g>${dot}</svg>`;
  document.querySelector('link[rel=icon]').href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
}
