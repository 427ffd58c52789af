/** Escape sequences of terminals (ECMA-48): colours and other styles of text. All other sequences are removed. */

/**
 * The style of text. A colour is a number of the palette, 0 to 15, or an `rgb()`. Never changed in place.
 * @typedef {object} Style
 * @property {number | string} [fg]
 * @property {number | string} [bg]
 * @property {boolean} [bold]
 * @property {boolean} [dim]
 * @property {boolean} [italic]
 * @property {boolean} [underline]
 * @property {boolean} [inverse]
 * @property {boolean} [hidden]
 * @property {boolean} [strike]
 * @property {boolean} [overline]
 */

/** Control sequences, strings such as the title of a window, and short ones, also without their end. */
const SEQUENCE = /\x1b(?:\[([0-?]*)[ -/]*([@-~]|$)|\][^\x07\x1b]*(?:\x07|\x1b\\|$)|[PX^_][^\x1b]*(?:\x1b\\|$)|[ -/]+(?:[0-~]|$)|[0-Z\\^-~]|$)/g;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f]/g;

/** @param {string} text @returns {string} the text as it is shown */
export const plain = (text) => (text.includes('\x1b') ? text.replace(SEQUENCE, '') : text).replace(CONTROL, '');

/**
 * Returns the parts of a line with their styles.
 * @param {string} text
 * @param {Style | null} style at its beginning
 * @returns {[string, Style | null][]}
 */
export function parts(text, style) {
  const found = [];
  let at = 0;
  const add = (end) => {
    const shown = text.slice(at, end).replace(CONTROL, '');
    if (shown) found.push([shown, style]);
  };
  for (const match of text.matchAll(SEQUENCE)) {
    add(match.index);
    at = match.index + match[0].length;
    if (match[2] === 'm') style = changed(style, match[1]);
  }
  add(text.length);
  return found;
}

/** @returns {Style | null} the style after a line that begins with `style` */
export function styleAfter(text, style) {
  if (!text.includes('\x1b')) return style;
  for (const [, parameters, final] of text.matchAll(SEQUENCE)) if (final === 'm') style = changed(style, parameters);
  return style;
}

const SIMPLE = { 1: 'bold', 2: 'dim', 3: 'italic', 4: 'underline', 7: 'inverse', 8: 'hidden', 9: 'strike', 21: 'underline', 53: 'overline' };
const ENDS = { 22: ['bold', 'dim'], 23: ['italic'], 24: ['underline'], 27: ['inverse'], 28: ['hidden'], 29: ['strike'],
  39: ['fg'], 49: ['bg'], 55: ['overline'] };

/** Applies the parameters of one sequence (SGR). */
function changed(before, parameters) {
  if (/[<-?]/.test(parameters)) return before; // private to some terminal
  let style = { ...before };
  const codes = parameters.split(';');
  for (let place = 0; place < codes.length; place += 1) {
    const [code, ...sub] = codes[place].split(':').map(Number);
    if (code === 0) style = {};
    else if (code === 4 && sub[0] === 0) delete style.underline;
    else if (SIMPLE[code]) style[SIMPLE[code]] = true;
    else if (ENDS[code]) for (const name of ENDS[code]) delete style[name];
    else if (code >= 30 && code <= 37) style.fg = code - 30;
    else if (code >= 40 && code <= 47) style.bg = code - 40;
    else if (code >= 90 && code <= 97) style.fg = code - 82;
    else if (code >= 100 && code <= 107) style.bg = code - 92;
    else if (code === 38 || code === 48 || code === 58) {
      const [colour, used] = sub.length ? [colonColour(sub), 0] : colourOf(codes.slice(place + 1).map(Number));
      place += used;
      if (code !== 58 && colour !== undefined) style[code === 38 ? 'fg' : 'bg'] = colour;
    }
  }
  return Object.keys(style).length ? style : null;
}

/** `5;N` or `2;R;G;B`: the colour, and how many parameters it used. */
function colourOf([kind, ...rest]) {
  if (kind === 5) return [indexed(rest[0]), 2];
  if (kind === 2) return [rgb(rest[0], rest[1], rest[2]), 4];
  return [undefined, 1];
}

/** `5:N`, `2:R:G:B`, or `2:SPACE:R:G:B`. */
function colonColour([kind, ...rest]) {
  if (kind === 5) return indexed(rest[0]);
  return kind === 2 ? rgb(...rest.slice(-3)) : undefined;
}

/** A colour of the 256: the palette, a cube of 6 × 6 × 6, and shades of grey. */
function indexed(number) {
  if (!(number >= 0 && number <= 255)) return undefined;
  if (number < 16) return number;
  if (number >= 232) return rgb(...Array(3).fill(8 + 10 * (number - 232)));
  const level = (n) => (n ? 55 + 40 * n : 0);
  const place = number - 16;
  return rgb(level(Math.floor(place / 36)), level(Math.floor(place / 6) % 6), level(place % 6));
}

const rgb = (...values) =>
  (values.length === 3 && values.every((one) => one >= 0 && one <= 255) ? `rgb(${values.join(' ')})` : undefined);
