// The keyboard: one map, shown by `?`, off while in a field.

import { h } from './format.js';

/** @typedef {import('./app.js').App} App */

/** Name, keys, what it does. */
const MAP = /** @type {[string, string][]} */ ([
  ['Space', 'pause; again: replay'], [', .', 'previous, next record of the topic, else of the log'], ['Shift ← →', 'ten seconds back, forth'], ['← → on the strip', 'one second'],
  ['Home', 'oldest moment of the log'], ['L', 'live'], ['[ ]', 'shorter, longer range'], ['1 … 4', 'replay at 1, 4, 16, 60 ×'], ['↑ ↓', 'rows'], ['→ ←', 'open, close a branch'], ['Enter', 'open a topic'],
  ['C', 'chart the row'], ['Esc', 'back'], ['/', 'find a topic, client or offset'], ['P', 'publish'], ['G then L C O R', 'Live, Clients, Log, Refusals'], ['T', 'light or dark'], ['?', 'this list'],
]);

export class Keys {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.dialog = h('dialog', { class: 'help', 'aria-label': 'Keys' }, h('h2', { text: 'Keys' }),
      h('dl', {}, ...MAP.flatMap(([keys, what]) => [h('dt', {}, ...keys.split(' ').map((k) => (/^(then|on|the|strip|…)$/.test(k) ? h('span', { text: ` ${k} ` }) : h('kbd', { text: k })))), h('dd', { text: what })])),
      h('form', { method: 'dialog' }, h('button', { text: 'Close' })));
    document.body.append(this.dialog);
    this.going = 0;
    document.addEventListener('keydown', (e) => this.#key(e));
  }

  help() {
    if (this.dialog.open) this.dialog.close();
    else this.dialog.showModal();
  }

  /** @param {KeyboardEvent} e */
  #key(e) {
    const { app } = this;
    const el = /** @type {HTMLElement} */ (e.target);
    if (e.ctrlKey || e.metaKey || e.altKey || el.closest('input, textarea, select, dialog')) return;
    if (e.key === ' ' && el.closest('button, a')) return;
    const key = e.key.toLowerCase();
    if (performance.now() < this.going) {
      this.going = 0;
      const view = /** @type {Record<string, import('./app.js').View>} */ ({ l: 'live', c: 'clients', o: 'log', r: 'refusals' })[key];
      if (view) { e.preventDefault(); return app.show(view); }
    }
    const inRows = el.closest('[role=tree], [role=slider], .rows');
    if (e.key === ' ') app.pauseOrPlay();
    else if (key === ',') app.stepRecord(-1);
    else if (key === '.') app.stepRecord(1);
    else if (e.shiftKey && e.key === 'ArrowLeft') app.move(-10_000);
    else if (e.shiftKey && e.key === 'ArrowRight') app.move(10_000);
    else if (e.key === 'Home' && !inRows) app.seek(app.wholeLog()[0]);
    else if (key === 'l') app.goLive();
    else if (key === '[') app.zoom(-1);
    else if (key === ']') app.zoom(1);
    else if ('1234'.includes(key)) app.setSpeed([1, 4, 16, 60][Number(key) - 1] ?? 1);
    else if (e.key === 'ArrowDown' || e.key === 'ArrowUp') {
      const rows = /** @type {HTMLElement | undefined} */ ([...document.querySelectorAll('.rows')].find((r) => /** @type {HTMLElement} */ (r).offsetParent !== null));
      rows?.focus();
      rows?.dispatchEvent(new KeyboardEvent('keydown', { key: e.key }));
    } else if (key === 'c' || e.key === 'Enter') { if (el.closest('button, a') || !app.treeIsShown()) return; app.tree.scroller.dispatchEvent(new KeyboardEvent('keydown', { key: e.key })); }
    else if (e.key === 'Escape' && !document.querySelector('dialog[open]')) { if (app.view !== 'live') app.show('live'); else app.goLive(); }
    else if (key === '/') app.search.input.focus();
    else if (key === 'p') app.publisher.open();
    else if (key === 'g') this.going = performance.now() + 1500;
    else if (key === 't') app.nextTheme();
    else if (e.key === '?') this.help();
    else return;
    e.preventDefault();
  }
}
