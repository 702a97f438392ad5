// Groups of shared subscriptions: who reads for them, how far they have come, what waits.

import { count, h, keyed, line, set } from './format.js';

/** @typedef {import('./app.js').App} App */
/** @typedef {{ group: string, filter: string, subscribers: number, members: { client_id: string, pending: number }[], pending: number, to_redeliver: number, dead_lettering: number, lag: number }} Group */

const SHOWN = 200;

export class Groups {
  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.body = h('tbody');
    this.note = h('p', { class: 'quiet note' });
    const heads = ['Group', 'Filter', 'Members', 'Lag', 'Pending', 'To redeliver'];
    this.el = h('div', { class: 'groups', hidden: true, tabindex: '0', role: 'region', 'aria-label': 'Groups' },
      h('table', {}, h('thead', {}, h('tr', {}, ...heads.map((t, i) => h('th', { class: i > 2 ? 'n' : '', text: t })))), this.body), this.note);
  }

  update() {
    const all = this.app.groups;
    keyed(this.body, all.slice(0, SHOWN), (g) => `${g.group}/${g.filter}`, (g) => this.#row(g));
    set(this.note, all.length === 0 ? 'No group yet: a client makes one when it subscribes to $share/GROUP/FILTER or $queue/FILTER.'
      : all.length > SHOWN ? `${count(all.length - SHOWN)} more: weir groups list` : '');
  }

  /** @param {Group} made */
  #row(made) {
    const cells = Array.from({ length: 4 }, (_, i) => h('td', { class: i > 0 ? 'n' : '' }));
    const [members, lag, pending, again] = cells;
    const el = h('tr', {}, h('td', {}, h('b', { text: line(made.group, 60) })), h('td', { class: 'mono', text: line(made.filter, 80) }), ...cells);
    const update = (/** @type {Group} */ g) => {
      const names = g.members.slice(0, 8).map((m) => `${line(m.client_id, 40)} (${count(m.pending)})`);
      const more = g.members.length > 8 ? ` and ${g.members.length - 8} more` : '';
      const away = g.subscribers - g.members.length;
      if (members) set(members, `${names.join(', ') || 'nobody is connected'}${more}${away > 0 && g.members.length > 0 ? `; ${count(away)} away` : ''}`);
      if (lag) set(lag, count(g.lag));
      if (pending) set(pending, count(g.pending));
      if (again) set(again, count(g.to_redeliver + g.dead_lettering));
    };
    return { el, update };
  }
}
