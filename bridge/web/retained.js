// Retained messages: which topics have one, and a way to clear them.

import { attr, count, h, keyed, line, set } from './format.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {{ topic: string, stream: string, partition: number, offset: number }} Retained */

const SHOWN = 100;
/** Between two looks, ms. */
const EVERY = 5_000;

export class RetainedMessages {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.filter = h('input', { type: 'text', value: '#', spellcheck: 'false', autocomplete: 'off', 'aria-label': 'Topic filter of retained messages', oninput: () => this.poll(true) });
    this.clear = h('button', { type: 'button', class: 'danger', text: 'Clear…', onclick: () => this.#clear() });
    this.rows = h('tbody');
    this.note = h('p', { class: 'quiet note' });
    this.el = h('section', { class: 'retained', 'aria-label': 'Retained messages' },
      h('div', { class: 'head' }, h('h2', { text: 'Retained messages' }), h('span', { class: 'acts' }, this.filter, this.clear)),
      h('table', {}, this.rows), this.note);
    this.asked = -Infinity;
    /** @type {Retained[]} */
    this.all = [];
    this.more = false;
    this.wrong = '';
    /** The filter that the list is of. @type {string | undefined} */
    this.listed = undefined;
  }

  /** @param {boolean} [now] */
  async poll(now = false) {
    if (!now && performance.now() - this.asked < EVERY) return;
    this.asked = performance.now();
    const filter = this.filter.value;
    const answer = await fetch(`/api/v1/retained?limit=${SHOWN}&filter=${encodeURIComponent(filter)}`).catch(() => undefined);
    if (!answer || filter !== this.filter.value) return;
    const body = await answer.json().catch(() => ({}));
    this.listed = filter;
    this.wrong = answer.ok ? '' : String(body.error ?? `HTTP ${answer.status}`);
    this.all = body.retained ?? [];
    this.more = body.after !== undefined && body.after !== null;
    this.app.dirty();
  }

  update() {
    keyed(this.rows, this.all, (r) => r.topic, (r) => this.#row(r));
    // What is asked about is what the list shows.
    const isListed = this.listed === this.filter.value;
    attr(this.clear, 'disabled', this.all.length === 0 || !isListed);
    set(this.note, !isListed ? 'Asking…' : this.wrong || (this.all.length === 0 ? 'No topic that matches has a retained message.' : this.more ? `The first ${count(this.all.length)}: a narrower filter shows others.` : ''));
  }

  /** @param {Retained} made */
  #row(made) {
    const go = h('button', { type: 'button', class: 'link mono', text: line(made.topic, 120), onclick: () => this.app.openTopic(made.topic) });
    const at = h('td', { class: 'n quiet mono' });
    const update = (/** @type {Retained} */ r) => set(at, `${r.stream}/${r.partition} · ${count(r.offset)}`);
    return { el: h('tr', {}, h('td', {}, go), at), update };
  }

  #clear() {
    const filter = this.listed ?? '';
    const n = `${count(this.all.length)}${this.more ? ' and more' : ''}`;
    this.app.admin.ask({
      title: 'Clear retained messages',
      text: `An empty retained message goes to each topic that matches ${filter}: ${n}. Whoever subscribes later gets none of them; what is in the log stays there.`,
      word: `Clear ${n}`,
      method: 'DELETE',
      path: `retained?filter=${encodeURIComponent(filter)}`,
      command: 'weir retained clear',
      operand: filter,
      done: (answer) => {
        this.asked = -Infinity;
        return `${count(answer.cleared)} cleared.${answer.more ? ' There are more: clear again.' : ''}`;
      },
    });
  }
}
