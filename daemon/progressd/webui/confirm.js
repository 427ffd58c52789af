/** A button for irreversible actions: the first press asks, a second press soon after confirms. */

const PATIENCE_MS = 4000;

/** @type {WeakMap<HTMLButtonElement, () => void>} the buttons that ask, each with a function to stop asking */
const asking = new WeakMap();

/**
 * @param {HTMLButtonElement} button the pressed button
 * @param {string} question to show on it
 * @returns {boolean} whether this press confirms an earlier one
 */
export function isConfirmed(button, question) {
  const stop = asking.get(button);
  if (stop) {
    stop();
    return true;
  }
  const { ariaLabel } = button;
  const row = button.closest('[role=row]');
  const content = [...button.childNodes];
  const calm = () => {
    asking.delete(button);
    clearTimeout(timer);
    button.removeEventListener('blur', calm);
    button.replaceChildren(...content);
    Object.assign(button, { ariaLabel });
    button.removeAttribute('data-asking');
    row?.removeAttribute('data-asks');
  };
  const timer = setTimeout(calm, PATIENCE_MS);
  button.addEventListener('blur', calm);
  Object.assign(button, { textContent: question, ariaLabel: [question, ariaLabel].filter(Boolean).join(' ') });
  button.setAttribute('data-asking', '');
  row?.setAttribute('data-asks', ''); // a selector with :has() would slow down each change of a row
  asking.set(button, calm);
  return false;
}
