// The first run: where the gateway listens, three commands, and each ticks itself off when it happens.

import { attr, h, set } from './format.js';

/** @typedef {import('./app.js').App} App */

/** Topics that only a fleet has. */
const FLEET = 20;

/** A command with a button that copies it. @param {string} text */
export function command(text) {
  const code = h('code', { text });
  const copy = h('button', { type: 'button', text: 'Copy', onclick: async () => {
    try { await navigator.clipboard.writeText(code.textContent ?? ''); set(copy, 'Copied'); } catch {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection()?.removeAllRanges();
      getSelection()?.addRange(range);
      set(copy, 'Selected');
    }
    setTimeout(() => set(copy, 'Copy'), 1500);
  } });
  return { el: h('div', { class: 'command' }, code, copy), code };
}

export class FirstRun {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.root = root;
    const host = location.hostname || '127.0.0.1';
    const port = () => app.about?.mqtt.split(':').at(-1) ?? '1883';
    const ways = /** @type {[string, () => string][]} */ ([
      ['mosquitto', () => `mosquitto_pub -h ${host} -p ${port()} -t hello/world -m 'it works' -q 1`],
      ['weir', () => `weir pub -h ${host} -p ${port()} -t hello/world -m 'it works' -q 1`],
      ['Python', () => `python3 -c "import paho.mqtt.publish as p; p.single('hello/world', 'it works', 1, hostname='${host}', port=${port()})"`],
      ['mqtt.js', () => `npx mqtt pub -h ${host} -p ${port()} -t hello/world -m 'it works' -q 1`],
    ]);
    const send = command('');
    this.write = () => set(send.code, ways[this.way]?.[1]() ?? '');
    this.way = 0;
    const tabs = ways.map(([name], i) => h('button', { type: 'button', text: name, onclick: () => { this.way = i; this.update(); } }));
    this.tabs = tabs;
    this.read = command('');
    this.fleetText = () => `weir demo --join ${host}:${port()}`;
    this.readText = () => `weir sub -h ${host} -p ${port()} -t '#' --from earliest -v`;
    /** @type {{ el: HTMLElement, mark: HTMLElement, done: boolean }[]} */
    this.steps = [];
    const step = (/** @type {string} */ title, /** @type {string} */ text, /** @type {(Node)[]} */ ...more) => {
      const mark = h('span', { class: 'mark', text: this.steps.length + 1 });
      const el = h('li', { class: 'step' }, mark, h('div', {}, h('h3', { text: title }), h('p', { text }), ...more));
      this.steps.push({ el, mark, done: false });
      return el;
    };
    this.title = h('h2', { class: 'empty-title' });
    this.lead = h('p', { class: 'lead' });
    this.fleet = command('');
    this.list = h('table', { class: 'listens' });
    this.open = h('p', { class: 'quiet' });
    root.append(
      h('div', { class: 'steps' }, this.title, this.lead,
        h('ol', {},
          step('Send one message', 'Its acknowledgement comes after the disk has it.', h('div', { class: 'choice', role: 'group', 'aria-label': 'Client' }, ...tabs), send.el),
          step('Read it again, from the past', 'The queue is a log: whoever comes late reads from where they like.', this.read.el),
          step('Or fill this page with a fleet of 50', 'Temperatures, doors, trucks and one flaky device, over real MQTT, to this gateway. Ctrl-C ends it.', this.fleet.el))),
      h('div', { class: 'beside' }, h('h3', { text: 'Where it listens' }), this.list, this.open, h('h3', { text: 'What you will see' }),
        h('p', {}, h('b', { text: 'The strip above' }), ' is the log, oldest left, now right. Drag it and the whole page shows that moment.'),
        h('p', {}, h('b', { text: 'Space' }), ' pauses, ', h('b', { text: 'L' }), ' returns to live, ', h('b', { text: '?' }), ' lists the other keys.')));
    this.wasEmpty = false;
  }

  /** Shown while the log is empty, and beside the first topics until a fleet is there or it is closed. */
  update() {
    const { app } = this;
    const empty = app.isEmpty();
    if (empty) this.wasEmpty = true;
    const shown = empty || (this.wasEmpty && app.model.topics.size < FLEET);
    attr(this.root, 'hidden', !shown);
    attr(document.body, 'data-first', shown ? (empty ? 'empty' : 'beside') : null);
    if (!shown) return;
    this.write();
    set(this.read.code, this.readText());
    set(this.fleet.code, this.fleetText());
    for (const [i, b] of this.tabs.entries()) attr(b, 'aria-pressed', String(i === this.way));
    const [sent, read, fleet] = this.steps;
    if (sent) sent.done ||= app.model.topics.size > 0;
    // A message that was there before its reader came: from the past.
    if (read) read.done ||= app.model.topics.size > 0 && (app.figures?.sent ?? 0) > 0;
    if (fleet) fleet.done ||= app.model.topics.size >= FLEET;
    for (const [i, s] of this.steps.entries()) {
      attr(s.el, 'data-done', s.done);
      set(s.mark, s.done ? '✓' : i + 1);
      attr(s.mark, 'aria-label', s.done ? `Step ${i + 1}, done` : `Step ${i + 1}`);
    }
    set(this.title, empty ? 'Waiting for the first message' : 'The first message is on disk');
    set(this.lead, empty ? 'The gateway is up and its log is empty. Point any MQTT client at it; this page follows by itself.' : 'It has its place in the log, and stays there for whoever comes late.');
    const a = app.about;
    if (a && this.list.childElementCount === 0) {
      const rows = [['MQTT 3.1.1 and 5', a.mqtt], ['MQTT over websocket', `${a.http}/mqtt`], ['Feed for browsers', `${a.http}/ws`], ['Metrics and admin', a.admin], ['Data', a.data]];
      this.list.append(h('tbody', {}, ...rows.map(([name, where]) => h('tr', {}, h('th', { scope: 'row', text: name }), h('td', { class: 'mono', text: where })))));
      const local = /^(127\.|\[::1\])/.test(a.mqtt);
      set(this.open, local ? 'Only this machine can reach it, and anyone on it may connect.' : 'Other machines can reach it, and anyone may connect.');
    }
  }
}
