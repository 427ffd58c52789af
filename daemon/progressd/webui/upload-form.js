/** The drop zone and the options of a conversion: turns dropped or chosen files into uploads. */

/**
 * @param {HTMLFormElement} form
 * @param {(files: File[], options: object) => void} onFiles
 * @param {Promise<void>} entered until then files wait: it is not known yet whether we may submit any
 */
export function setUpUploadForm(form, onFiles, entered) {
  const { file } = form.elements;
  const options = document.getElementById('options');
  const take = async (list) => {
    const files = [...list];
    await entered;
    if (form.closest('[hidden]')) return; // who may not submit files is not asked for them, but can drop some
    if (files.length && form.reportValidity()) onFiles(files, optionsOf(form));
  };
  form.addEventListener('invalid', () => { options.open = true; }, { capture: true });
  form.addEventListener('submit', (event) => event.preventDefault());
  file.addEventListener('change', () => {
    take(file.files);
    file.value = ''; // so that choosing the same file again is a change again
  });
  acceptDrops(document.documentElement, take);
}

/** Files may be dropped anywhere on the page; `data-dragging` is there while they hover over it. */
function acceptDrops(root, take) {
  let depth = 0; // dragenter comes for a child before dragleave of its parent
  const hover = (change) => {
    depth = Math.max(0, depth + change);
    root.toggleAttribute('data-dragging', depth > 0);
  };
  const forFiles = (handle) => (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    handle(event);
  };
  root.addEventListener('dragenter', forFiles(() => hover(1)));
  root.addEventListener('dragleave', forFiles(() => hover(-1)));
  root.addEventListener('dragover', forFiles((event) => { event.dataTransfer.dropEffect = 'copy'; }));
  root.addEventListener('drop', forFiles((event) => {
    hover(-depth);
    take(event.dataTransfer.files);
  }));
}

/** @returns {{dpi: number, deskew: boolean, upscale: boolean, ocr: boolean, advanced: boolean}} */
function optionsOf(form) {
  const { dpi, deskew, upscale, ocr, advanced } = form.elements;
  return {
    dpi: dpi.valueAsNumber,
    deskew: deskew.checked,
    upscale: upscale.checked,
    ocr: ocr.checked,
    advanced: advanced.checked,
  };
}

/**
 * Takes the defaults that the server has, save where the user has chosen something else already.
 * @param {HTMLFormElement} form
 * @param {Record<string, unknown>} defaults by the names of the options
 */
export function setDefaults(form, defaults) {
  for (const input of form.querySelectorAll('.option input')) {
    const value = defaults[input.name];
    if (input.type === 'checkbox' && typeof value === 'boolean') {
      if (input.disabled || input.checked === input.defaultChecked) input.checked = value;
      input.defaultChecked = value;
    } else if (input.type === 'number' && typeof value === 'number') {
      if (input.value === input.defaultValue) input.value = value;
      input.defaultValue = value;
    }
  }
}

/** Text recognition is a choice only on a server that can do it; elsewhere the form says why it is not. */
export function offerOcr(form, available) {
  const { ocr } = form.elements;
  ocr.disabled = !available;
  ocr.checked &&= available;
  document.getElementById('ocr-offer').hidden = !available;
  document.getElementById('ocr-missing').hidden = available;
}
