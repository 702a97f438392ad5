// What the page changes goes through the admin API, and asks first.

import { command } from './first.js';
import { attr, h, set } from './format.js';

/** @typedef {import('./app.js').App} App */
/**
 * Something that is about to be changed.
 * @typedef {object} Change
 * @property {string} title
 * @property {string} text What will have happened.
 * @property {string} word On the button.
 * @property {'DELETE'} method
 * @property {string} path Behind `/api/v1/`.
 * @property {string} command The same in a shell.
 * @property {string} [operand] Its last word.
 * @property {(answer: any) => string} done What is said then.
 */

/** Where the command line asks by itself. */
const USUAL = '127.0.0.1:9464';

/** A word of a shell. @param {string} text */
export const quoted = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\\''")}'`);

export class Admin {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.title = h('h2');
    this.text = h('p');
    this.same = command('');
    this.said = h('p', { class: 'said', role: 'status' });
    this.go = h('button', { class: 'primary danger' });
    this.close = h('button', { type: 'button', onclick: () => this.dialog.close() });
    const form = h('form', { onsubmit: (/** @type {Event} */ e) => { e.preventDefault(); this.#run(); } },
      this.text, h('p', { class: 'quiet', text: 'In a shell:' }), this.same.el, this.said, h('div', { class: 'acts' }, this.close, this.go));
    this.dialog = h('dialog', { class: 'ask' }, this.title, form);
    document.body.append(this.dialog);
    /** @type {Change | undefined} */
    this.change = undefined;
  }

  /** The option of a command that is for another gateway than the usual one. */
  option() {
    const admin = this.app.about?.admin ?? USUAL;
    return admin === USUAL ? '' : ` --admin ${admin}`;
  }

  /** A command with its options; a last word that begins with a hyphen is no option. @param {string} command @param {string} [operand] */
  line(command, operand) {
    if (operand === undefined) return command + this.option();
    return operand.startsWith('-') ? `${command}${this.option()} -- ${quoted(operand)}` : `${command} ${quoted(operand)}${this.option()}`;
  }

  /** Says what would happen; nothing has happened yet. @param {Change} change */
  ask(change) {
    this.change = change;
    attr(this.dialog, 'aria-label', change.title);
    set(this.title, change.title);
    set(this.text, change.text);
    set(this.same.code, this.line(change.command, change.operand));
    set(this.go, change.word);
    attr(this.go, 'hidden', false);
    attr(this.go, 'disabled', false);
    set(this.close, 'Cancel');
    set(this.said, '');
    this.dialog.showModal();
    this.close.focus();
  }

  async #run() {
    const { change } = this;
    if (!change || this.go.disabled) return;
    attr(this.go, 'disabled', true);
    this.#say('quiet', 'Asking…');
    try {
      this.#say('durable', change.done(await this.#answer(change)));
    } catch (e) {
      this.#say('bad', e instanceof Error ? e.message : String(e));
    }
    attr(this.go, 'hidden', true);
    set(this.close, 'Close');
    // The keyboard stays in the dialog.
    if (this.dialog.open) this.close.focus();
    this.app.pollNow();
  }

  /** @param {Change} change */
  async #answer(change) {
    const port = (this.app.about?.admin ?? USUAL).split(':').at(-1);
    const place = `${location.hostname}:${port}`;
    let answer;
    try {
      answer = await fetch(`http://${place}/api/v1/${change.path}`, { method: change.method });
    } catch {
      throw new Error(`The admin port ${place} cannot be reached from this browser. The command above works on the gateway's machine.`);
    }
    const body = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(`Not done: ${body.error ?? `HTTP ${answer.status}`}`);
    return body;
  }

  /** @param {string} kind @param {string} text */
  #say(kind, text) {
    attr(this.said, 'data-kind', kind);
    set(this.said, text);
  }
}
