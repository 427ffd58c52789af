/** The style of `<progressd-log>`. Pages change it with the variables `--progressd-…` and the parts `find` and `lines`. */

import { COLORS } from './colors.js';

const pairs = { // the palette of terminals, readable on light and on dark ground
  0: ['#1d2024', '#99a1a9'], 1: ['#b3261e', '#ff8f85'], 2: ['#1c7040', '#6ccf9c'], 3: ['#7d5700', '#e5b75f'],
  4: ['#2f51cf', '#8fa8ff'], 5: ['#9333a8', '#e39af0'], 6: ['#0b6b7b', '#6fd0e0'], 7: ['#5d646c', '#d5d9dd'],
  8: ['#5d646c', '#99a1a9'], 9: ['#c22a20', '#ffa59d'], 10: ['#1b7a45', '#86e0b1'], 11: ['#8a5f00', '#f4cd7f'],
  12: ['#3f61dc', '#a9bcff'], 13: ['#a23fb8', '#ecb4f6'], 14: ['#0c7486', '#8fdfec'], 15: ['#3c4248', '#ffffff'],
};
const palette = Object.entries(pairs).map(([n, [light, dark]]) => `
  .f${n} { --front: light-dark(${light}, ${dark}); color: var(--front); }
  .b${n} { background: color-mix(in srgb, light-dark(${light}, ${dark}) 24%, transparent); }`).join('');

export const sheet = new CSSStyleSheet();
sheet.replaceSync(`
  :host {
    display: block;
    --ink: var(--progressd-ink, ${COLORS.ink});
    --soft: var(--progressd-soft, ${COLORS.soft});
    --sheet: var(--progressd-sheet, ${COLORS.sheet});
    --rule: var(--progressd-rule, ${COLORS.rule});
    --edge: var(--progressd-edge, ${COLORS.edge});
    --accent: var(--progressd-accent, ${COLORS.running});
    --failed: var(--progressd-failed, ${COLORS.failed});
    color: var(--ink);
  }
  :host([hidden]), [hidden] { display: none !important; }
  *, *::before, *::after { box-sizing: border-box; }
  :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

  .tools { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .5rem 1rem; margin-bottom: .5rem; }
  .finder, .switches { display: flex; flex-wrap: wrap; align-items: center; gap: .375rem; min-width: 0; }
  .finder { flex: 1 1 16rem; }
  input {
    flex: 1 1 8rem;
    min-width: 0;
    max-width: 18rem;
    padding: .3125rem .625rem;
    border: 1px solid var(--edge);
    border-radius: .5rem;
    background: var(--sheet);
    color: inherit;
    font: inherit;
    font-size: .875rem;
    line-height: 1.25rem;
  }
  .matches { color: var(--soft); font-size: .8125rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
  .matches:empty { display: none; }
  button, .tool {
    padding: .3125rem .625rem;
    border: 1px solid transparent;
    border-radius: .5rem;
    background: none;
    color: var(--soft);
    font: inherit;
    font-size: .875rem;
    line-height: 1.25rem;
    text-decoration: none;
    cursor: pointer;
  }
  button:hover:not(:disabled), .tool:hover { background: color-mix(in srgb, var(--ink) 7%, transparent); color: var(--ink); }
  button:disabled { opacity: .4; cursor: default; }
  button[aria-pressed] { border-color: var(--rule); }
  button[aria-pressed=true] {
    border-color: color-mix(in srgb, var(--accent) 45%, transparent);
    background: color-mix(in srgb, var(--accent) 10%, transparent);
    color: var(--accent);
  }

  .view { position: relative; }
  .scroller {
    min-height: 6.25rem;
    max-height: var(--progressd-log-height, 24rem);
    padding: .5rem 0;
    overflow: auto;
    overflow-anchor: none;
    overscroll-behavior: contain;
    border: 1px solid var(--rule);
    border-radius: .625rem;
    background: var(--sheet);
    font: .8125rem/1.25rem var(--progressd-log-font, ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace);
    tab-size: 8;
    scrollbar-width: thin;
    scrollbar-color: var(--edge) transparent;
  }
  .lines { width: max-content; min-width: 100%; }
  .block { min-height: calc(var(--n) * 1.25rem); contain: layout style; }
  .scroller:not([data-wrap]) .block { height: calc(var(--n) * 1.25rem); }
  .line { min-height: 1.25rem; padding: 0 .875rem 0 .625rem; border-left: 3px solid transparent; white-space: pre; }
  .scroller[data-wrap] .lines { width: auto; }
  .scroller[data-wrap] .line { white-space: pre-wrap; overflow-wrap: anywhere; }
  .line[data-s=e] { border-left-color: var(--failed); background: color-mix(in srgb, var(--failed) 6%, transparent); }
  .line[data-s=n] { color: var(--soft); font-style: italic; }
  .line.gap {
    background: repeating-linear-gradient(135deg, transparent 0 6px, color-mix(in srgb, var(--edge) 14%, transparent) 6px 12px);
    color: var(--soft);
    font-style: italic;
    text-align: center;
    user-select: none;
  }
  time { margin-right: .875rem; color: var(--soft); user-select: none; }
  .newest {
    position: absolute;
    right: 1.25rem;
    bottom: .875rem;
    border-color: var(--accent);
    background: var(--accent);
    color: var(--sheet);
    font-weight: 600;
    box-shadow: 0 2px 10px rgb(0 0 0 / .2);
  }
  .newest:hover:not(:disabled) { background: color-mix(in srgb, var(--accent) 85%, var(--ink)); color: var(--sheet); }
  .status { min-height: 1.25rem; margin: .375rem 0 0; color: var(--soft); font-size: .8125rem; font-variant-numeric: tabular-nums; }

  mark { border-radius: 2px; background: light-dark(#ffe58f, #6b5300); color: inherit; }
  mark.current { background: light-dark(#ffb020, #ffc53d); color: #1d2024; outline: 2px solid light-dark(#8a5a00, #ffe58f); }
  mark.current * { color: inherit !important; background: none !important; }

  .bold { font-weight: 700; }
  .dim { opacity: .72; }
  .italic { font-style: italic; }
  .underline { text-decoration-line: underline; }
  .strike { text-decoration-line: line-through; }
  .overline { text-decoration-line: overline; }
  .underline.strike { text-decoration-line: underline line-through; }
  .hidden { visibility: hidden; }
  ${palette}
  .inverse { background: var(--front, var(--ink)); color: var(--sheet); }
  .own { color: light-dark(oklch(from var(--front) min(l, .53) c h), oklch(from var(--front) max(l, .74) c h)); }
  .exact { color: var(--front); }
  .ground { background: var(--back); }

  @media (forced-colors: active) {
    .line { border-left-color: Canvas; }
    .line[data-s=e] { border-left-color: Highlight; }
    button[aria-pressed=true] { forced-color-adjust: none; border-color: Highlight; background: Highlight; color: HighlightText; }
    mark { forced-color-adjust: none; background: Mark; color: MarkText; }
    mark.current { background: Highlight; color: HighlightText; }
  }
`);
