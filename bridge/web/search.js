// Find: a topic, a client, or an offset.

import { attr, h, line } from './format.js';

/** @typedef {import('./app.js').App} App */

const SHOWN = 12;

export class Search {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.input = h('input', { type: 'search', placeholder: 'Topic, client or offset', spellcheck: 'false', autocomplete: 'off', role: 'combobox', 'aria-expanded': 'false', 'aria-controls': 'found', 'aria-label': 'Find a topic, client or offset' });
    this.list = h('ul', { id: 'found', role: 'listbox', hidden: true, 'aria-label': 'Found' });
    root.append(this.input, h('kbd', { text: '/' }), this.list);
    /** @type {{ text: string, kind: string, go: () => void }[]} */
    this.found = [];
    this.at = 0;
    this.input.addEventListener('input', () => this.#find());
    this.input.addEventListener('focus', () => this.#find());
    this.input.addEventListener('blur', () => { this.#show([]); attr(document.body, 'data-finding', null); });
    this.input.addEventListener('keydown', (e) => {
      if (e.key === 'Escape') { this.input.value = ''; this.input.blur(); }
      else if (e.key === 'ArrowDown') this.#move(1);
      else if (e.key === 'ArrowUp') this.#move(-1);
      else if (e.key === 'Enter') this.#go(this.at);
      else return;
      e.preventDefault();
    });
  }

  /** On a phone the field is out of sight until it is wanted. */
  open() {
    attr(document.body, 'data-finding', true);
    this.input.focus();
  }

  #find() {
    const { app } = this;
    const wanted = this.input.value.trim().toLowerCase();
    if (wanted === '') return this.#show([]);
    /** @type {{ text: string, kind: string, go: () => void }[]} */
    const found = [];
    const digits = wanted.replace(/[,.\s]/g, '');
    if (/^\d+$/.test(digits)) {
      for (const s of app.streams.filter((one) => one.stream !== 'system')) {
        const offset = Number(digits);
        if (offset >= s.start && offset < s.end) found.push({ text: `${s.stream}/${s.partition} · ${offset}`, kind: 'offset', go: () => this.#offset(s, offset) });
      }
    }
    for (const name of app.model.topics.keys()) {
      if (found.length >= SHOWN) break;
      if (name.toLowerCase().includes(wanted)) found.push({ text: name, kind: 'topic', go: () => { app.tree.reveal(name); app.openTopic(name); } });
    }
    const clients = new Set([...app.clients.keys(), ...app.sessions.map((s) => s.client_id)]);
    for (const id of clients) {
      if (found.length >= SHOWN + 4) break;
      if (id.toLowerCase().includes(wanted)) found.push({ text: id, kind: 'client', go: () => { app.clientsView.choose(id); app.show('clients'); } });
    }
    this.at = 0;
    this.#show(found);
  }

  /** @param {any} s @param {number} offset */
  async #offset(s, offset) {
    const r = await this.app.record(`${s.stream}/${s.partition}`, offset);
    if (!r) return;
    this.app.openTopic(r.topic);
    this.app.seekFrom(r.time_ms + 1);
  }

  /** @param {{ text: string, kind: string, go: () => void }[]} found */
  #show(found) {
    this.found = found;
    attr(this.list, 'hidden', found.length === 0);
    attr(this.input, 'aria-expanded', String(found.length > 0));
    // The field keeps the focus, or the list would close under the press.
    const stay = (/** @type {Event} */ e) => e.preventDefault();
    this.list.replaceChildren(...found.map((f, i) => h('li', { id: `found-${i}`, role: 'option', 'aria-selected': String(i === this.at), onmousedown: stay, onclick: () => this.#go(i) }, h('span', { text: line(f.text, 80) }), h('span', { class: 'quiet', text: f.kind }))));
    attr(this.input, 'aria-activedescendant', found.length > 0 ? `found-${this.at}` : null);
  }

  /** @param {number} by */
  #move(by) {
    if (this.found.length === 0) return;
    this.at = (this.at + by + this.found.length) % this.found.length;
    this.#show(this.found);
  }

  /** @param {number} at */
  #go(at) {
    const one = this.found[at];
    if (!one) return;
    this.input.value = '';
    this.input.blur();
    this.#show([]);
    one.go();
  }
}
