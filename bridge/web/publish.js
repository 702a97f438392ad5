// Publishing by hand, as any MQTT client would: where the gateway admits this page.

import { attr, h, set } from './format.js';
import { publish } from './mqtt.js';

/** @typedef {import('./app.js').App} App */

export class Publisher {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.topic = h('input', { type: 'text', required: true, maxlength: 1024, spellcheck: 'false', autocomplete: 'off' });
    this.payload = h('textarea', { rows: 5, spellcheck: 'false' });
    this.qos = h('select', {}, ...['0', '1', '2'].map((q) => h('option', { value: q, text: q === '0' ? '0: no acknowledgement' : q === '1' ? '1: acknowledged when on disk' : '2: exactly once', selected: q === '1' })));
    this.retain = h('input', { type: 'checkbox' });
    this.said = h('p', { class: 'said', role: 'status' });
    const form = h('form', { onsubmit: (/** @type {Event} */ e) => { e.preventDefault(); this.#send(); } },
      h('label', {}, 'Topic', this.topic), h('label', {}, 'Payload', this.payload),
      h('div', { class: 'pair' }, h('label', {}, 'QoS', this.qos), h('label', { class: 'check' }, this.retain, 'Retain')),
      this.said, h('div', { class: 'acts' }, h('button', { type: 'button', text: 'Close', onclick: () => this.dialog.close() }), h('button', { class: 'primary', text: 'Publish' })));
    this.dialog = h('dialog', { class: 'publish', 'aria-label': 'Publish a message' }, h('h2', { text: 'Publish a message' }), form);
    document.body.append(this.dialog);
  }

  open() {
    const t = this.app.view === 'topic' ? this.app.topic : '';
    if (t) {
      this.topic.value = t;
      const live = this.app.model.topics.get(t)?.live;
      if (live?.text !== undefined && live.bytes === new TextEncoder().encode(live.text).length) this.payload.value = live.text;
    }
    set(this.said, '');
    this.dialog.showModal();
  }

  async #send() {
    const topic = this.topic.value;
    if (/[+#\u0000]/.test(topic)) return this.#say('bad', 'A topic to publish to has no + and no # in it.');
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    this.#say('quiet', 'Sending…');
    try {
      const qos = /** @type {0 | 1 | 2} */ (Number(this.qos.value));
      const r = await publish(`${scheme}://${location.host}/mqtt`, { topic, payload: this.payload.value, qos, retain: this.retain.checked });
      if (qos === 0) this.#say('durable', 'Sent. QoS 0 is not acknowledged.');
      else this.#say('durable', `On disk ${r.position ? `at ${r.position}, ` : ''}acknowledged after ${r.ms.toFixed(1)} ms.`);
    } catch (e) {
      this.#say('bad', `Not published: ${e instanceof Error ? e.message : String(e)}.`);
    }
  }

  /** @param {string} kind @param {string} text */
  #say(kind, text) {
    attr(this.said, 'data-kind', kind);
    set(this.said, text);
  }
}
