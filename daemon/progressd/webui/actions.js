/** What changes jobs: cancels, retries and deletes one or several. It is loaded at the first use. */

import { cancelBatch, cancelJob, deleteJob, retryJob, signedDownloadUrl } from './api.js';
import { Selection, withAll } from './bulk.js';
import { Cancelling } from './cancelling.js';
import { isConfirmed } from './confirm.js';
import { nameOf } from './job-text.js';
import { setting } from './settings.js';
import { star, startedHere } from './stars.js';
import { t } from './text.js';

const SENTENCES = {
  cancel: (n, reason) => t('{n} job was not cancelled: {reason} | {n} jobs were not cancelled: {reason}', { n, reason }),
  retry: (n, reason) => t('{n} job was not retried: {reason} | {n} jobs were not retried: {reason}', { n, reason }),
  delete: (n, reason) => t('{n} job was not deleted: {reason} | {n} jobs were not deleted: {reason}', { n, reason }),
};

export class Actions {
  /** @type {Selection} */
  selection;
  #source;
  #cancelling;

  /**
   * @param {HTMLElement} bar with the buttons for the selected jobs
   * @param {object} source
   * @param {import('./jobs.js').Jobs} source.jobs
   * @param {import('./feed.js').Feed} source.feed
   * @param {import('./toasts.js').Toasts} source.toasts
   * @param {() => import('./view.js').Line[]} source.lines
   * @param {() => import('./uploads.js').Uploads} source.uploads
   * @param {() => void} source.onChange
   */
  constructor(bar, source) {
    this.#source = source;
    const { jobs, lines, toasts, onChange } = source;
    this.#cancelling = new Cancelling({
      offerUndo: (sentence, onUndo) => toasts.offerUndo(sentence, onUndo),
      onChange,
      onCancel: (entries, isLeaving) => this.#withEach('cancel', entries, (entry) => this.#cancelNow(entry, isLeaving)),
    });
    this.selection = new Selection(bar, {
      jobs,
      lines,
      onChange,
      actions: {
        cancel: async (chosen) => this.#cancelling.add(chosen),
        retry: (chosen) => this.#withEach('retry', chosen, (job) => this.retry(job)),
        delete: (chosen) => this.#withEach('delete', chosen, (job) => this.delete(job)),
      },
    });
  }

  /** @param {string} id of a job or batch @returns {boolean} whether it is about to be cancelled */
  isPending(id) {
    return this.#cancelling.has(id);
  }

  /** Does what a button of a row says. */
  async act(name, entry, button) {
    if (name === 'delete' && !isConfirmed(button, t('Really delete?'))) return;
    try {
      await this[name](entry, button);
    } catch (error) {
      this.#source.toasts.say(t('{name}: {reason}', { name: nameOf(entry), reason: error.message }));
    }
  }

  /* The actions of rows and cards, by their buttons' `data-action`. */

  async cancel(entry, button) {
    if (entry.upload) this.dismiss(entry);
    else if (setting('cancel') !== 'ask') this.#cancelling.add([entry]);
    else if (button.dataset.question || isConfirmed(button, t('Really cancel?'))) await this.#cancelNow(entry);
  }

  async cancelAll({ id }) {
    await cancelBatch(id);
  }

  async retry(entry) {
    if (entry.upload) {
      this.#source.uploads().retry(entry.id);
      return;
    }
    const { job_id } = await retryJob(entry.id);
    startedHere(job_id);
    this.#source.feed.want(job_id);
  }

  async delete({ id }) {
    await deleteJob(id).catch((error) => { if (error.status !== 404) throw error; });
    this.#source.jobs.remove(id, true);
  }

  dismiss({ id }) {
    this.#source.uploads().remove(id);
  }

  star({ id }) {
    star(id);
    this.#source.onChange();
  }

  /** Downloads a result with a key: a link cannot carry it, so the browser opens a link with a token. */
  async download({ id }) {
    const signed = document.createElement('a');
    signed.href = await signedDownloadUrl(id);
    signed.download = '';
    signed.click();
  }

  async #cancelNow({ batch, id }, isLeaving) {
    if (batch) await cancelBatch(id, isLeaving);
    else this.#source.jobs.put(await cancelJob(id, isLeaving));
  }

  /** Does something with several jobs, and reports failures in one sentence. */
  async #withEach(name, entries, action) {
    const errors = await withAll(entries, action);
    if (errors.length) this.#source.toasts.say(SENTENCES[name](errors.length, errors[0].message));
  }
}
