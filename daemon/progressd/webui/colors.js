/** The colours of the elements. They are those of the daemon's page, by the names of its variables in `page.css`. */

export const COLORS = {
  ink: 'light-dark(#1d2024, #e8eaec)',
  soft: 'light-dark(#5d646c, #9da5ad)',
  sheet: 'light-dark(#ffffff, #1b1e21)',
  rule: 'light-dark(#e0e0da, #2b2f33)',
  track: 'light-dark(#e8e8e3, #2d3237)',
  edge: 'light-dark(#868a87, #6b737b)',
  running: 'light-dark(#2f51cf, #8fa8ff)',
  done: 'light-dark(#1d754f, #6ccf9c)',
  failed: 'light-dark(#b2382c, #ff9284)',
  caution: 'light-dark(#8a5a00, #e5b75f)',
};
