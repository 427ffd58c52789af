/** The server's time, from its responses, so that elapsed times are right even if the local clock is wrong. */

/** `Date` headers have whole seconds and take time to arrive: a smaller difference means nothing. */
const TOLERANCE_MS = 2000;

let offset = 0;

/** @param {string | null} header the `Date` header of a response that has just arrived */
export function learnFrom(header) {
  const difference = Date.parse(header) - Date.now();
  if (Number.isNaN(difference)) return;
  offset = Math.abs(difference) > TOLERANCE_MS ? difference : 0;
}

/** @returns {number} milliseconds since the epoch, by the server's clock */
export const now = () => Date.now() + offset;

let stoppedAt = null;

/** Stops the clocks of the page at a moment, or starts them again. @param {number | null} moment by the local clock */
export function stopClocks(moment) {
  stoppedAt = moment === null ? null : moment + offset;
}

/** @returns {number} the moment that the page shows: `now`, or the moment at which the clocks stopped */
export const shownNow = () => stoppedAt ?? now();
