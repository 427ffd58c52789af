/** The icons on buttons. */

import { drawing } from './dom.js';

const PATHS = {
  cancel: 'M4 4l8 8m0-8l-8 8',
  retry: 'M12.5 8a4.5 4.5 0 1 1-1.3-3.2M12.6 2v3h-3',
  download: 'M8 2.5v8m-3-3l3 3 3-3M3 13.5h10',
  delete: 'M2.5 4.5h11m-8 0v-2h5v2m-6.5 0l.6 9h6.8l.6-9',
  star: 'M8 2l1.8 3.8 4.2.5-3.1 2.9.8 4.1L8 11.3l-3.7 2 .8-4.1L2 6.3l4.2-.5z',
  toggle: 'M6 4l4 4-4 4',
};

/** @param {keyof PATHS} name */
export const icon = (name) => drawing('svg', { viewBox: '0 0 16 16', 'aria-hidden': 'true' }, drawing('path', { d: PATHS[name] }));
