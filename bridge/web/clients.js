// Clients by urgency: how full their windows are, how far back they read, when they lose data; one of them explained.

import { begin, token } from './draw.js';
import { attr, brief, count, h, line, set, span, when } from './format.js';
import { quoted } from './admin.js';
import { command } from './first.js';
import { Groups } from './groups.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {import('./app.js').Session} Session */

const ROW = 32;
/** Samples of the lag of the chosen one. */
const TREND_MAX = 300;
/** Marks of the place in the log, back from now. */
const MARKS = /** @type {[string, number][]} */ ([['7 d', 604800_000], ['1 d', 86400_000], ['1 h', 3600_000], ['1 m', 60_000]]);

/** @typedef {{ s: Session, lag: number, records: number, loss: number, state: 'behind' | 'offline' | 'live' | 'idle' }} Line */

/** Records, of its topics or not, that retention took before it came to them. @param {Session} s */
export const taken = (s) => s.places.reduce((n, p) => n + (p.live ? 0 : Math.max(0, p.start - p.next)), 0);

export class Clients {
  /** @param {App} app @param {HTMLElement} root */
  constructor(app, root) {
    this.app = app;
    this.chosen = '';
    this.filter = 'all';
    this.chips = h('div', { class: 'pills', role: 'group', 'aria-label': 'Which clients' });
    this.inner = h('div', { class: 'inner' });
    this.rows = h('div', { class: 'rows', role: 'listbox', tabindex: '0', 'aria-label': 'Clients, most urgent first' }, this.inner);
    this.head = h('div', { class: 'crow thead' }, ...['Client', 'Protocol', 'In flight', 'Behind by'].map((t) => h('span', { text: t })),
      h('span', { class: 'marks', 'aria-hidden': 'true' }, ...MARKS.map(([t]) => h('i', { text: t })), h('i', { text: 'now' })), h('span', { class: 'n', text: 'Loses data in' }));
    this.about = h('div');
    this.copy = command('');
    this.leave = h('button', { type: 'button', class: 'danger', text: 'Disconnect…', onclick: () => this.#disconnect() });
    this.forget = h('button', { type: 'button', class: 'danger', text: 'End session…', onclick: () => this.#end() });
    this.acts = h('div', { class: 'acts' }, this.leave, this.forget);
    this.panel = h('aside', { class: 'panel', 'aria-label': 'The chosen client' }, this.about, this.copy.el, this.acts);
    this.groups = new Groups(app);
    root.append(h('div', { class: 'list' }, h('div', { class: 'head' }, this.chips, h('span', { class: 'quiet', text: 'Most urgent first' })), this.head, this.rows, this.groups.el), this.panel);
    /** @type {HTMLElement[]} */
    this.pool = [];
    /** @type {Line[]} */
    this.lines = [];
    this.rows.addEventListener('scroll', () => this.#rows());
    this.rows.addEventListener('keydown', (e) => {
      const at = this.lines.findIndex((l) => l.s.client_id === this.chosen);
      if (e.key === 'ArrowDown') this.choose(this.lines[Math.min(this.lines.length - 1, at + 1)]?.s.client_id ?? '');
      else if (e.key === 'ArrowUp') this.choose(this.lines[Math.max(0, at - 1)]?.s.client_id ?? '');
      else return;
      e.preventDefault();
      e.stopPropagation();
    });
    /** @type {Map<string, { at: number, lag: number, next: number, end: number }[]>} */
    this.trends = new Map();
    this.canvas = h('canvas', { class: 'cursor' });
    this.trend = h('canvas', { class: 'trend' });
    this.key = '';
    this.seen = /** @type {Session[]} */ ([]);
  }

  /** @param {string} id */
  choose(id) {
    if (!id) return;
    this.chosen = id;
    // On a phone it stands below the list.
    if (matchMedia('(max-width: 759px)').matches) requestAnimationFrame(() => this.panel.scrollIntoView({ block: 'start' }));
    this.app.address();
    this.app.dirty();
  }

  #sort() {
    const { app } = this;
    if (this.seen === app.sessions && this.lines.length > 0 && this.key === this.filter) return;
    this.seen = app.sessions;
    this.key = this.filter;
    /** @type {Line[]} */
    const all = app.sessions.map((s) => {
      const places = s.places.filter((p) => p.stream !== 'system' || s.places.length === 1);
      const lag = Math.max(0, ...places.map((p) => p.behind_ms ?? 0));
      const records = places.reduce((n, p) => n + (p.behind_ms === null ? 0 : Math.max(0, p.end - Math.max(p.next, p.start))), 0);
      const loss = Math.min(Infinity, ...places.map((p) => p.loss_at_ms ?? Infinity));
      const state = !s.connected ? 'offline' : records > 0 ? 'behind' : places.length > 0 ? 'live' : 'idle';
      const t = this.trends.get(s.client_id) ?? [];
      const next = places.reduce((n, p) => n + p.next, 0);
      t.push({ at: app.now(), lag, next, end: places.reduce((n, p) => n + p.end, 0) });
      if (t.length > TREND_MAX) t.shift();
      this.trends.set(s.client_id, t);
      return { s, lag, records, loss, state };
    });
    for (const id of this.trends.keys()) if (!app.sessions.some((s) => s.client_id === id)) this.trends.delete(id);
    // Urgency: who loses first, then who is furthest behind; the rest by name, never by traffic.
    const order = { behind: 0, offline: 1, live: 2, idle: 3 };
    all.sort((a, b) => a.loss - b.loss || (b.lag > 5000 || a.lag > 5000 ? b.lag - a.lag : 0) || order[a.state] - order[b.state] || (a.s.client_id < b.s.client_id ? -1 : 1));
    const counts = { all: all.length, live: all.filter((l) => l.state === 'live' || l.state === 'idle').length, behind: all.filter((l) => l.state === 'behind').length, offline: all.filter((l) => l.state === 'offline').length };
    const wanted = /** @type {[string, string][]} */ ([['all', `All ${counts.all}`], ['live', `Live ${counts.live}`], ['behind', `Behind ${counts.behind}`], ['offline', `Offline ${counts.offline}`], ['groups', `Groups ${app.groups.length}`]]);
    if (this.chips.childElementCount === 0) this.chips.append(...wanted.map(([name]) => h('button', { type: 'button', 'data-filter': name, onclick: () => { this.filter = name; this.app.dirty(); } })));
    for (const [i, b] of [...this.chips.children].entries()) { set(b, wanted[i]?.[1] ?? ''); attr(b, 'aria-pressed', String(wanted[i]?.[0] === this.filter)); }
    this.lines = all.filter((l) => this.filter === 'all' || this.filter === 'groups' || l.state === this.filter || (this.filter === 'live' && l.state === 'idle'));
    if (!this.chosen && this.lines[0]) this.chosen = this.lines[0].s.client_id;
  }

  update() {
    this.#sort();
    const groups = this.filter === 'groups';
    for (const el of [this.head, this.rows]) attr(el, 'hidden', groups);
    attr(this.groups.el, 'hidden', !groups);
    if (groups) this.groups.update();
    this.#rows();
    this.#explain();
  }

  #rows() {
    this.inner.style.height = `${this.lines.length * ROW}px`;
    const first = Math.max(0, Math.floor(this.rows.scrollTop / ROW));
    const n = Math.min(this.lines.length - first, Math.ceil(this.rows.clientHeight / ROW) + 1);
    while (this.pool.length < n) {
      const bar = h('i', { class: 'bar' });
      const track = h('span', { class: 'track', 'aria-hidden': 'true' }, h('i', { class: 'tail' }), h('i', { class: 'at' }));
      const el = h('div', { class: 'crow', role: 'option' }, h('span', { class: 'who' }, h('i', { class: 'disc' }), h('span')), h('span'), h('span', { class: 'flight' }, h('span', { class: 'gauge' }, bar), h('span')), h('span'), track, h('span', { class: 'n' }));
      el.addEventListener('click', () => this.choose(this.lines[Number(el.dataset.at)]?.s.client_id ?? ''));
      this.pool.push(el);
      this.inner.append(el);
    }
    const { app } = this;
    for (const [i, el] of this.pool.entries()) {
      const l = i < n ? this.lines[first + i] : undefined;
      attr(el, 'hidden', !l);
      if (!l) continue;
      const { s } = l;
      el.dataset.at = String(first + i);
      el.style.transform = `translateY(${(first + i) * ROW}px)`;
      attr(el, 'aria-selected', String(s.client_id === this.chosen));
      attr(el, 'data-state', l.state);
      const [who, protocol, flight, behind, track, loses] = /** @type {HTMLElement[]} */ ([...el.children]);
      if (!who || !protocol || !flight || !behind || !track || !loses) continue;
      set(/** @type {Element} */ (who.children[1]), line(s.client_id, 60));
      set(protocol, s.version);
      const full = s.in_flight_max > 0 ? Math.min(1, s.in_flight / s.in_flight_max) : 0;
      const bar = /** @type {HTMLElement} */ (flight.children[0]?.children[0]);
      bar.style.width = `${Math.round(full * 100)}%`;
      attr(bar, 'data-kind', full >= 1 ? 'behind' : null);
      // Its window is agreed on when it connects.
      set(/** @type {Element} */ (flight.children[1]), s.connected ? `${count(s.in_flight)} of ${brief(s.in_flight_max)}` : count(s.in_flight));
      const nothing = s.places.length === 0;
      set(behind, nothing ? '–' : l.records === 0 ? (s.connected ? 'live' : 'nothing waits') : `${span(l.lag)}  ${brief(l.records)}`);
      attr(behind, 'data-kind', l.records === 0 ? (s.connected && !nothing ? 'durable' : 'quiet') : s.connected ? 'behind' : null);
      const at = place(l.records === 0 ? 0 : l.lag);
      const [tail, mark] = /** @type {HTMLElement[]} */ ([...track.children]);
      if (tail && mark) { tail.style.left = `${at}%`; mark.style.left = `${at}%`; attr(mark, 'hidden', nothing); attr(tail, 'hidden', nothing); }
      const left = l.loss - app.now();
      const gone = taken(s);
      set(loses, nothing ? '–' : gone > 0 ? `lost ${brief(gone)}` : l.loss === Infinity ? (l.records > 0 ? 'not foreseen' : 'never') : left <= 0 ? 'now' : span(left));
      attr(loses, 'data-kind', gone > 0 || left < 6 * 3600_000 ? 'bad' : l.loss === Infinity ? 'quiet' : null);
    }
  }

  #disconnect() {
    const id = this.chosen;
    this.app.admin.ask({
      title: `Disconnect ${line(id, 60)}`,
      text: 'Its connection ends; its session and what waits for it stay. Most clients connect again by themselves.',
      word: 'Disconnect',
      method: 'DELETE',
      path: `clients/${encodeURIComponent(id)}`,
      command: `weir clients --disconnect${id.startsWith('-') ? '=' : ' '}${quoted(id)}`,
      done: () => 'It is disconnected.',
    });
  }

  #end() {
    const id = this.chosen;
    this.app.admin.ask({
      title: `End the session of ${line(id, 60)}`,
      text: 'Its subscriptions, its place in the log and its places in groups are forgotten, and its connection ends. What is in the log stays there, but this client is not sent what it has missed.',
      word: 'End session',
      method: 'DELETE',
      path: `sessions/${encodeURIComponent(id)}`,
      command: 'weir sessions delete',
      operand: id,
      done: () => 'The session is ended.',
    });
  }

  #explain() {
    const { app } = this;
    const l = this.lines.find((one) => one.s.client_id === this.chosen);
    for (const el of [this.copy.el, this.acts]) attr(el, 'hidden', !l);
    if (!l) { this.panel.dataset.key = ''; this.about.replaceChildren(h('p', { class: 'quiet', text: this.lines.length === 0 ? 'Nobody is here.' : 'Choose a client.' })); return; }
    const { s } = l;
    const c = app.clients.get(s.client_id);
    const t = this.trends.get(s.client_id) ?? [];
    const [a, b] = [t[0], t.at(-1)];
    const seconds = a && b ? (b.at - a.at) / 1000 : 0;
    const speed = a && b && seconds > 3 ? { reads: Math.max(0, (b.next - a.next) / seconds), written: (b.end - a.end) / seconds } : undefined;
    const life = s.expiry_s === null ? 'session kept for ever' : s.expiry_s === 0 ? 'session ends with it' : `session kept ${span(s.expiry_s * 1000)}`;
    const worst = s.places.filter((p) => p.loss_at_ms !== null).sort((x, y) => (x.loss_at_ms ?? 0) - (y.loss_at_ms ?? 0))[0];
    set(this.copy.code, app.admin.line('weir explain', s.client_id));
    attr(this.leave, 'disabled', !s.connected);
    const full = s.in_flight >= s.in_flight_max && s.in_flight > 0;
    const why = l.records === 0 ? (s.places.length === 0 ? 'It subscribes to nothing of its own.' : 'It is given what comes as it comes.')
      : !s.connected ? 'It is not connected: what it subscribes to waits in the log.'
        : full ? `Its window is full: ${count(s.in_flight)} of ${count(s.in_flight_max)} in flight. So it is the client that is slow, not the disk.` : 'Its window has room: it is being read to from the log.';
    const row = (/** @type {string} */ name, /** @type {string} */ text, mono = false) => h('tr', {}, h('th', { scope: 'row', text: name }), h('td', { class: mono ? 'mono' : '', text }));
    const canvases = l.records > 0;
    const warn = worst && (worst.loss_at_ms ?? Infinity) - app.now() < 24 * 3600_000;
    const key = JSON.stringify([s, c?.connected_ms, speed && [Math.round(speed.reads * 10), Math.round(speed.written * 10)], warn]);
    if (this.panel.dataset.key !== key) {
      this.panel.dataset.key = key;
      this.about.replaceChildren(
        h('h2', { text: line(s.client_id, 120) }),
        h('p', { class: 'quiet', text: [c?.address ?? (s.connected ? 'websocket' : 'not connected'), `MQTT ${s.version}`, life].join(' · ') }),
        ...(taken(s) > 0 ? [h('div', { class: 'alarm', role: 'alert' }, h('b', { text: 'It has lost records' }), `: retention took ${count(taken(s))} before it came to them, of its topics or not.`)] : []),
        ...(warn && worst ? [h('div', { class: 'alarm', role: 'alert' }, h('b', { text: `Loses data in ${span((worst.loss_at_ms ?? 0) - app.now())}` }), `, at the rate of the last minutes${s.connected ? ', unless it reads faster' : ''}. Retention then deletes the segment it will be reading: ${worst.stream}/${worst.partition} · from ${count(Math.max(worst.next, worst.start))}.`)] : []),
        h('p', {}, ...(speed && l.records > 0 ? ['Reads ', h('b', { text: `${Math.round(speed.reads)}/s` }), '; the log grows by ', h('b', { text: `${Math.round(speed.written)}/s` }), '. '] : []), why),
        ...(canvases ? [this.canvas, h('p', { class: 'label', text: 'how far back it reads' }), this.trend] : []),
        h('table', { class: 'listens' }, h('tbody', {},
          ...s.subscriptions.slice(0, 20).map((f, i) => row(i === 0 ? 'Subscribes to' : '', `${f.filter}  QoS ${f.qos}`, true)),
          ...(s.subscriptions.length > 20 ? [row('', `and ${s.subscriptions.length - 20} more`)] : []),
          ...s.places.map((p) => row(`${p.stream}/${p.partition}`, p.behind_ms === null && p.live ? `live at ${count(p.end)}` : `${count(Math.max(p.next, p.start))} of ${count(p.end)}`, true)),
          ...(c ? [row('Connected', `since ${when(c.connected_ms, app.now())}`)] : []),
          row('In flight', `${count(s.in_flight)}${s.connected ? ` of ${count(s.in_flight_max)}` : ''}${s.oldest_in_flight === null ? '' : `, oldest ${count(s.oldest_in_flight)}`}`),
          ...(s.has_will ? [row('Will', 'yes')] : []))));
    }
    if (canvases) { this.#cursor(l); this.#trend(t); }
  }

  /** Acknowledged, in flight, to go: on the partition that it is furthest behind in. @param {Line} l */
  #cursor(l) {
    const p = [...l.s.places].sort((x, y) => (y.end - y.next) - (x.end - x.next))[0];
    const canvas = begin(this.canvas);
    if (!canvas || !p) return;
    const { c, width } = canvas;
    const x = (/** @type {number} */ o) => ((o - p.start) / Math.max(1, p.end - p.start)) * (width - 4) + 2;
    const next = Math.max(p.next, p.start);
    const acked = l.s.oldest_in_flight ?? next;
    c.fillStyle = token('bar2');
    c.fillRect(2, 18, width - 4, 14);
    c.fillStyle = token('behind-soft');
    c.fillRect(x(next), 18, x(p.end) - x(next), 14);
    c.fillStyle = token('bar');
    c.fillRect(x(acked), 18, Math.max(1, x(next) - x(acked)), 14);
    c.fillStyle = token('behind');
    c.fillRect(x(acked) - 1, 14, 2, 22);
    c.fillRect(x(next) - 1, 14, 2, 22);
    c.fillStyle = token('durable');
    c.fillRect(x(p.end) - 2, 14, 2, 22);
    c.fillStyle = token('ink2');
    c.textAlign = x(acked) < 80 ? 'left' : 'right';
    c.fillText('acknowledged', x(acked), 10);
    c.textAlign = 'left';
    c.fillText('oldest', 2, 46);
    c.textAlign = 'right';
    c.fillStyle = token('durable');
    c.fillText('on disk', width - 2, 10);
    c.fillStyle = token('behind');
    c.fillText(`${count(p.end - next)} to go`, width - 2, 46);
  }

  /** @param {{ at: number, lag: number }[]} t */
  #trend(t) {
    const canvas = begin(this.trend);
    const [first, last] = [t[0], t.at(-1)];
    if (!canvas || !first || !last || t.length < 2) return;
    const { c, width, height } = canvas;
    const high = Math.max(...t.map((p) => p.lag)) * 1.15 + 1;
    const x = (/** @type {number} */ at) => 66 + ((at - first.at) / Math.max(1, last.at - first.at)) * (width - 70);
    const y = (/** @type {number} */ lag) => height - 14 - (lag / high) * (height - 20);
    c.fillStyle = token('ink2');
    c.textAlign = 'right';
    for (const part of [0, 0.5, 1]) {
      const v = (high / 1.15) * part;
      c.fillText(v === 0 ? '0' : span(v), 60, y(v) + 4);
      c.fillStyle = token('line');
      c.fillRect(66, Math.round(y(v)), width - 70, 1);
      c.fillStyle = token('ink2');
    }
    c.strokeStyle = token('behind');
    c.lineWidth = 1.6;
    c.beginPath();
    for (const [i, p] of t.entries()) if (i === 0) c.moveTo(x(p.at), y(p.lag)); else c.lineTo(x(p.at), y(p.lag));
    c.stroke();
    c.textAlign = 'left';
    c.fillText(`${span(last.at - first.at)} ago`, 66, height - 2);
    c.textAlign = 'right';
    c.fillText('now', width - 2, height - 2);
  }
}

/** Where on the track a lag is: logarithmic, now at the right. @param {number} lag */
function place(lag) {
  const scale = (/** @type {number} */ ms) => Math.log10(1 + ms / 1000) / Math.log10(1 + 604800);
  return Math.round((1 - Math.min(1, scale(lag))) * 990) / 10;
}
