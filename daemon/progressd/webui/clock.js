/** The server's time as its answers tell it, so that elapsed times are right where the clock is not. */

/** `Date` headers carry whole seconds and travel a while: a smaller difference says nothing. */
const TOLERANCE_MS = 2000;

let offset = 0;

/** @param {string | null} header the `Date` header of an answer that has just arrived */
export function learnFrom(header) {
  const difference = Date.parse(header) - Date.now();
  if (Number.isNaN(difference)) return;
  offset = Math.abs(difference) > TOLERANCE_MS ? difference : 0;
}

/** @returns {number} milliseconds since the epoch, by the server's clock */
export const now = () => Date.now() + offset;
