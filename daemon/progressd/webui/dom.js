/** Small helpers for building and updating elements. */

/**
 * @param {string} name
 * @param {Record<string, any>} [properties] of the element; `class` and names with a hyphen are attributes
 * @param {...(Node | string)} children
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key === 'class' || key.includes('-')) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Like `element`, for a drawing. All properties are attributes. */
export function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Sets the text only if it changes, for the sake of selections and screen readers. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Shows pairs of a name and a value as a description list, and keeps the elements that do not change.
 * @param {HTMLElement} list a `dl`
 * @param {[string, string | Node | null | undefined | ''][]} pairs those without a value are left out
 * @param {boolean} [grouped] whether each pair is in a `div`
 */
export function describe(list, pairs, grouped = false) {
  const shown = pairs.filter(([, value]) => value);
  const key = JSON.stringify(shown.map(([name, value]) => [name, value instanceof Node ? value.outerHTML : value]));
  if (list.dataset.shown === key) return;
  list.dataset.shown = key;
  list.replaceChildren(...shown.flatMap(([name, value]) => {
    const pair = [element('dt', {}, name), element('dd', {}, value)];
    return grouped ? [element('div', {}, ...pair)] : pair;
  }));
}

export const byId = (id) => document.getElementById(id);

/** Loads a style. @param {string} name of a file beside this one */
export function loadStyle(name) {
  const link = element('link', { rel: 'stylesheet', href: new URL(name, import.meta.url) });
  const loaded = new Promise((resolve) => { link.onload = link.onerror = resolve; });
  document.head.append(link);
  return loaded;
}
