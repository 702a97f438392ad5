// A message's life: received, on disk, acknowledged, sent and acknowledged per subscriber. Times are there for watched topics only, while they are watched.

import { attr, count, h, set } from './format.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./model.js').Rec} Rec */

export class Life {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.position = h('span', { class: 'mono quiet' });
    root.append(h('div', { class: 'chart-head' }, h('h3', { text: 'Life of this message' }), this.position));
  }

  /** @param {Rec | undefined} r */
  update(r) {
    attr(this.root, 'hidden', r === undefined);
    if (r) set(this.position, `${r.name} · ${count(r.offset)}`);
  }
}
