/** The drop zone and the options of a conversion: uploads dropped or chosen files. */

/**
 * @param {HTMLFormElement} form
 * @param {(files: File[], options: object) => void} onFiles
 * @param {Promise<void>} entered files wait until then: whether this page may submit is unknown before
 */
export function setUpUploadForm(form, onFiles, entered) {
  const { file } = form.elements;
  const options = document.getElementById('options');
  const take = async (list) => {
    const files = [...list];
    await entered;
    if (form.closest('[hidden]')) return; // hidden without the right to submit, but files can be dropped
    if (files.length && form.reportValidity()) onFiles(files, optionsOf(form));
  };
  form.addEventListener('invalid', () => { options.open = true; }, { capture: true });
  form.addEventListener('submit', (event) => event.preventDefault());
  file.addEventListener('change', () => {
    take(file.files);
    file.value = ''; // so that choosing the same file again is a change
  });
  acceptDrops(document.documentElement, take);
}

/** Files can be dropped anywhere on the page. `data-dragging` is set while they hover over it. */
function acceptDrops(root, take) {
  let depth = 0; // dragenter of a child precedes dragleave of its parent
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
 * Applies the server's defaults, except to options that the user has already changed.
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

/** Text recognition is available only if the server supports it; otherwise the form shows the reason. */
export function offerOcr(form, available) {
  const { ocr } = form.elements;
  ocr.disabled = !available;
  ocr.checked &&= available;
  document.getElementById('ocr-offer').hidden = !available;
  document.getElementById('ocr-missing').hidden = available;
}
