// Every control of every view, pressed as people press: by mouse, for as long as a finger takes, by touch on a phone, and by Tab and Enter.
// A control that stands in no line here fails.

import { assert, open, sleep, until } from './lib.mjs';

/** How long a button is held down: whatever the page draws meanwhile, the press arrives. */
const HELD_MS = 120;

const viewOf = (page) => page.evaluate(() => document.body.dataset.view);
const modeOf = (page) => page.evaluate(() => document.body.dataset.mode);
const shows = (view) => async (page) => (await viewOf(page)) === view;
const isPast = async (page) => (await modeOf(page)) === 'past';
const opens = (name) => (page) => page.isVisible(`dialog.${name}`);
const closes = (name) => async (page) => !(await page.isVisible(`dialog.${name}`));
const focused = (css) => (page) => page.evaluate((wanted) => document.activeElement?.matches(wanted), css);
const has = (css, name, wanted) => async (page) => (await page.getAttribute(css, name)) === wanted;
const reads = (css, wanted) => async (page) => wanted.test(await page.textContent(css));
/** Another than before the press. */
const changes = (what) => Object.assign((page, before) => page.evaluate(what).then((now) => now !== before), { before: (page) => page.evaluate(what) });
const pause = async (page) => { await page.keyboard.press(','); await until('the past', () => isPast(page)); };
const all = (page) => page.click('.pills [data-filter=all]');
const branch = changes(() => globalThis.weir.tree.rows.length);
/** What was read whole is forgotten. */
const again = async (page) => { await reset(page, '#view=live'); await sleep(300); await reset(page, BIG); };
/** On a phone the field is behind a button. */
const find = async (page) => { if (!(await page.isVisible('#search input'))) await page.click('[data-act=find]'); };
const asks = (page) => page.isVisible('dialog.ask');
/** Another client each time: one that was disconnected takes a while to come back. */
const asked = [];
const ask = (css) => async (page) => {
  await all(page);
  const fresh = () => page.evaluate((used) => globalThis.weir.clientsView.lines.find((l) => l.s.connected && /^(door|truck|thermometer)-/.test(l.s.client_id) && !used.includes(l.s.client_id))?.s.client_id, asked);
  const id = await until('a client that was not asked about', fresh);
  asked.push(id);
  await page.evaluate((chosen) => globalThis.weir.clientsView.choose(chosen), id);
  // The panel and its buttons are those of this one.
  await until('it is chosen', async () => (await page.textContent('.panel h2')) === id);
  await page.click(css);
  await until('it asks', () => asks(page));
};
const charts = changes(() => globalThis.weir.charts.length);

const TOPIC = '#view=topic&topic=site/faro/room-1/climate';
const BIG = '#view=topic&topic=big';

/**
 * Where it is, what it is, and what becomes of a press. `first`: what is done before. `by`: how it can be pressed, if not in all ways; what the
 * keyboard does instead stands in `demo`. `wide`, `phone`: where it is to be found, if not on both.
 */
const EVERYWHERE = ['mouse', 'touch', 'keys'];
const POINTED = ['mouse', 'touch'];
const CONTROLS = [
  { at: '#view=clients', css: 'a.brand', then: shows('live') },
  ...['live', 'clients', 'log', 'refusals'].map((view) => ({ at: view === 'log' ? '#view=live' : '#view=log', css: `nav [data-view=${view}]`, then: shows(view) })),
  ...['live', 'clients', 'log', 'log', 'log', 'clients', 'clients', 'refusals'].map((view, i) => ({ at: view === 'live' ? '#view=log' : TOPIC, css: `.figure:nth-child(${i + 1})`, then: shows(view) })),
  { at: '#view=live', css: '[data-act=find]', phone: true, then: focused('#search input') },
  { at: '#view=live', css: '#search input', by: POINTED, then: focused('#search input'), first: find },
  { at: '#view=live', css: '#found li', by: POINTED, then: shows('topic'), first: async (page) => { await find(page); await page.click('#search input'); await page.keyboard.type('room-7'); } },
  { at: '#view=live', css: '[data-act=publish]', then: opens('publish') },
  { at: '#view=live', css: '[data-act=theme]', then: changes(() => document.documentElement.dataset.theme) },
  { at: '#view=live', css: '[data-act=help]', then: opens('help') },
  { at: '#view=live', css: 'dialog.help button', then: closes('help'), first: (page) => page.keyboard.press('?') },
  { at: '#view=live', css: '.buttons .icon:nth-child(1)', then: isPast },
  { at: '#view=live', css: '.buttons .icon:nth-child(2)', then: isPast },
  { at: '#view=live', css: '.buttons .icon:nth-child(3)', then: changes(() => globalThis.weir.playhead.time), first: pause },
  { at: '#view=live', css: '.buttons .speed', wide: true, then: changes(() => document.querySelector('.speed').textContent) },
  { at: '#view=live', css: '.buttons .live', then: async (page) => (await modeOf(page)) === 'live', first: pause },
  ...[1, 2, 3].map((n) => ({ at: '#view=live', css: `.ranges button:nth-child(${n})`, then: has(`.ranges button:nth-child(${n})`, 'aria-pressed', 'true') })),
  { at: '#view=live', css: '.ranges button', by: [] },
  { at: '#view=live', css: '.slider', by: POINTED, then: isPast },
  { at: '#view=live', css: '.whole', by: POINTED, then: isPast },
  { at: '#view=live', css: '.row:not([data-branch])', by: POINTED, then: shows('topic') },
  { at: '#view=live', css: '.row[data-branch]', by: POINTED, then: branch },
  { at: '#view=live', css: '.row[data-branch] .twist', by: POINTED, then: branch },
  { at: '#view=live', css: '.row:not([data-branch]) .dot', by: ['mouse'], wide: true, then: charts },
  { at: '#view=live', css: '.row .twist, .row .dot', by: [] },
  { at: '#view=live', css: '.rows[role=tree]', by: ['keys'], then: async (page) => { await page.keyboard.press('ArrowDown'); return page.evaluate(() => globalThis.weir.tree.cursor > 0); } },
  ...['Topics', 'Charts'].map((name) => ({ at: '#view=live', css: `.tree .phone button:text-is("${name}")`, phone: true, then: async (page) => (await page.evaluate(() => document.body.dataset.part)) === name.toLowerCase() })),
  { at: '#view=live', css: '.tree .phone button', by: [], phone: true },
  { at: '#view=live', css: '.urgent .link', then: async (page) => ['clients', 'log', 'refusals'].includes(await viewOf(page)) },
  { at: '#view=live', css: '.chart .plot', by: POINTED, then: isPast, first: (page) => page.evaluate(() => { document.body.dataset.part = 'charts'; globalThis.weir.dirty(); }) },
  { at: '#view=live', css: '.chart .states', by: POINTED, then: isPast, first: (page) => page.evaluate(() => { document.body.dataset.part = 'charts'; globalThis.weir.dirty(); }) },
  { at: TOPIC, css: '.topic-view .acts button:nth-child(1)', then: opens('publish') },
  { at: TOPIC, css: '.topic-view .acts button:nth-child(2)', then: opens('export') },
  { at: TOPIC, css: '.topic-view .acts button:nth-child(3)', then: shows('live') },
  ...['CSV', 'JSON lines'].map((name) => ({ at: TOPIC, css: `dialog.export button:text-is("${name}")`, then: reads('dialog.export .said', /records in site_faro_room-1_climate\.(csv|jsonl)/), first: (page) => page.click('.topic-view .acts button:nth-child(2)') })),
  { at: TOPIC, css: 'dialog.export .acts button:nth-child(1)', then: closes('export'), first: (page) => page.click('.topic-view .acts button:nth-child(2)') },
  { at: TOPIC, css: 'dialog.export .acts button', by: [] },
  { at: TOPIC, css: '.payload-box .choice button:text-is("Text")', then: has('.payload-box .choice button:text-is("Text")', 'aria-pressed', 'true') },
  { at: TOPIC, css: '.payload-box .choice button', by: [] },
  { at: TOPIC, css: 'pre.payload', by: EVERYWHERE, then: focused('pre.payload') },
  { at: BIG, css: '.payload-box > .link', then: async (page) => !(await page.isVisible('.payload-box > .link')), first: again },
  { at: TOPIC, css: '.history .trow', by: POINTED, then: async (page) => (await page.$$('.history .trow[aria-selected=true]')).length === 1 },
  { at: TOPIC, css: '.rows.history', by: ['keys'], then: async (page) => { await page.keyboard.press('ArrowDown'); return page.evaluate(() => globalThis.weir.topicView.selected !== undefined); } },
  { at: TOPIC, css: '.fields-box tbody tr:nth-child(2)', by: POINTED, then: has('.fields-box tbody tr:nth-child(2)', 'aria-selected', 'true') },
  { at: TOPIC, css: '.fields-box tbody tr:nth-child(2) .link:not(.add)', then: has('.fields-box tbody tr:nth-child(2)', 'aria-selected', 'true') },
  { at: TOPIC, css: '.fields-box tbody tr:nth-child(1) .add', then: charts },
  { at: TOPIC, css: '.fields-box tbody tr, .fields-box tbody .link', by: [] },
  ...['all', 'live', 'behind', 'offline'].map((name) => ({ at: '#view=clients', css: `.pills [data-filter=${name}]`, then: has(`.pills [data-filter=${name}]`, 'aria-pressed', 'true') })),
  { at: '#view=clients', css: '.crow[role=option]:nth-child(4)', by: POINTED, then: has('.crow[role=option]:nth-child(4)', 'aria-selected', 'true'), first: all },
  { at: '#view=clients', css: '.crow[role=option]', by: [] },
  { at: '#view=clients', css: '.list .rows', by: ['keys'], then: async (page) => { await page.keyboard.press('ArrowDown'); return page.evaluate(() => location.hash.includes('client=')); }, first: all },
  { at: '#view=clients', css: '.panel .command button', then: reads('.panel .command button', /Copied|Selected/) },
  { at: '#view=clients', css: '.pills [data-filter=groups]', then: (page) => page.isVisible('.groups') },
  { at: '#view=clients', css: '.groups', by: ['keys'], then: focused('.groups'), first: (page) => page.click('.pills [data-filter=groups]') },
  ...[1, 2].map((n) => ({ at: '#view=clients', css: `.panel .acts button:nth-child(${n})`, then: asks, first: all })),
  { at: '#view=clients', css: '.panel .acts button', by: [] },
  { at: '#view=clients', css: 'dialog.ask .command button', then: reads('dialog.ask .command button', /Copied|Selected/), first: ask('.panel .acts button:nth-child(1)') },
  { at: '#view=clients', css: 'dialog.ask .acts button:not(.primary)', then: closes('ask'), first: ask('.panel .acts button:nth-child(1)') },
  { at: '#view=clients', css: 'dialog.ask .primary', then: reads('dialog.ask .said', /^It is disconnected\.$/), first: ask('.panel .acts button:nth-child(1)') },
  { at: '#view=log', css: '.retained input', then: focused('.retained input') },
  { at: '#view=log', css: '.retained .acts button', then: asks },
  { at: '#view=log', css: '.retained .link', then: shows('topic') },
  { at: '#view=log', css: '.log-view .plot', by: POINTED, then: isPast },
  { at: '#view=refusals', css: '.events tr', then: isPast },
  { at: '#view=refusals', css: '.events .scroll', by: ['keys'], then: focused('.events .scroll') },
  { at: TOPIC, css: 'dialog.publish input[type=text]', then: focused('dialog.publish input[type=text]'), first: (page) => page.keyboard.press('p') },
  { at: TOPIC, css: 'dialog.publish textarea', then: focused('dialog.publish textarea'), first: (page) => page.keyboard.press('p') },
  { at: TOPIC, css: 'dialog.publish select', then: focused('dialog.publish select'), first: (page) => page.keyboard.press('p') },
  { at: TOPIC, css: 'dialog.publish input[type=checkbox]', by: POINTED, then: changes(() => document.querySelector('dialog.publish input[type=checkbox]').checked), first: (page) => page.keyboard.press('p') },
  { at: TOPIC, css: 'dialog.publish .primary', then: reads('dialog.publish .said', /acknowledged after/), first: (page) => page.keyboard.press('p') },
  { at: TOPIC, css: 'dialog.publish .acts button:not(.primary)', then: closes('publish'), first: (page) => page.keyboard.press('p') },
  // While the gateway is away or comes back, and before the first message: `killed`, `first`.
  { css: '#banner button, .first .choice button, .first .command button', by: [] },
];

/** Remembers what listens to presses. */
const watchListeners = (page) => page.addInitScript(() => {
  globalThis.pressable = new Set();
  const add = EventTarget.prototype.addEventListener;
  EventTarget.prototype.addEventListener = function addEventListener(type, ...more) {
    if (['click', 'pointerdown', 'mousedown', 'touchstart'].includes(type) && this instanceof Element) globalThis.pressable.add(this);
    return add.call(this, type, ...more);
  };
});

/** Controls that are in sight and that no line of the table is about. */
const unknown = (page) => page.evaluate((known) => {
  const isKnown = (el) => known.some((css) => el.matches(css));
  const usual = document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex]:not([tabindex="-1"])');
  const all = [...new Set([...usual, ...globalThis.pressable])].filter((el) => el.isConnected && el.checkVisibility({ visibilityProperty: true }) && el.getBoundingClientRect().width > 0);
  // What the charts' library listens to is inside of ours.
  return all.filter((el) => !el.closest('.u-wrap') && !isKnown(el)).map((el) => el.outerHTML.slice(0, 160));
}, CONTROLS.map((c) => c.css).map((css) => css.replaceAll(/:text-is\("[^"]*"\)/g, '')));

/** Controls that moved on the page while somebody could have been about to press them. Rows of lists come and go. */
const moved = (page, ms) => page.evaluate(async (limit) => {
  const places = () => new Map([...document.querySelectorAll('button, a[href], input')]
    .filter((el) => !el.closest('.rows, .urgent, .events') && el.checkVisibility())
    .map((el) => [el, Math.round(el.getBoundingClientRect().top + scrollY)]));
  const before = places();
  const found = new Set();
  for (const end = performance.now() + limit; performance.now() < end;) {
    await new Promise(requestAnimationFrame);
    for (const [el, top] of places()) if (before.has(el) && before.get(el) !== top) found.add(`${el.className} ${el.textContent}: ${before.get(el)} to ${top}`);
  }
  return [...found];
}, ms);

/** Back to where nothing is chosen, at an address. */
async function reset(page, at) {
  await page.evaluate((hash) => {
    for (const d of document.querySelectorAll('dialog')) d.close();
    document.activeElement?.blur();
    document.body.dataset.part = 'topics';
    globalThis.chartsAtFirst ??= [...globalThis.weir.charts];
    globalThis.weir.charts = [...globalThis.chartsAtFirst];
    globalThis.weir.goLive();
    location.hash = hash === location.hash ? '' : hash;
    location.hash = hash;
  }, at);
  const wanted = new URLSearchParams(at.slice(1)).get('view');
  await until(`the view ${wanted}`, async () => (await viewOf(page)) === wanted && (await modeOf(page)) === 'live');
}

const press = {
  async mouse(page, el) {
    await el.scrollIntoViewIfNeeded();
    const box = await el.boundingBox();
    await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
    await page.mouse.down();
    await sleep(HELD_MS);
    await page.mouse.up();
  },
  async touch(page, el) {
    await el.scrollIntoViewIfNeeded();
    const box = await el.boundingBox();
    await page.touchscreen.tap(box.x + box.width / 2, box.y + box.height / 2);
  },
  async keys(page, el, css) {
    // From the beginning of the page.
    await page.evaluate(() => { const brand = document.querySelector('a.brand'); brand.focus(); brand.blur(); });
    for (let i = 0; i < 200; i += 1) {
      await page.keyboard.press('Tab');
      if (await el.evaluate((one) => one === document.activeElement)) return page.keyboard.press('Enter');
    }
    throw new Error(`Tab does not come to ${css}`);
  },
};

async function one(page, control, way, tries = 3) {
  await reset(page, control.at);
  if (control.first) await control.first(page);
  const el = await until('it is there', async () => { const all = await page.$$(control.css); for (const e of all) if (await e.isVisible()) return e; return null; });
  const before = await control.then.before?.(page);
  try {
    await press[way](page, el, control.css);
    await until(`what is to come of it at ${control.at}`, () => control.then(page, before));
  } catch (e) {
    // A list was drawn anew between the look and the press: nobody pressed anything.
    if (tries > 1 && !(await el.evaluate((one) => one.isConnected).catch(() => false))) return one(page, control, way, tries - 1);
    throw e;
  }
}

export async function controls(browser, weir) {
  weir.publish('big', Buffer.from(`"${'y'.repeat(200_000)}"`));
  for (const [width, ways] of [[1280, ['mouse', 'keys']], [390, ['touch', 'mouse']]]) {
    const phone = width < 500;
    const page = await open(browser, weir.url, { width, touch: phone, before: watchListeners });
    await until('the fleet', async () => (await page.textContent('#tree .head .quiet')).startsWith('50'));
    await until('something urgent', () => page.isVisible('.urgent .link'));
    const failed = [];
    for (const at of new Set(CONTROLS.flatMap((c) => c.at ?? []))) {
      await reset(page, at);
      await sleep(1000);
      for (const what of await unknown(page)) failed.push(`in no line of the table, ${width} px, ${at}: ${what}`);
      for (const what of await moved(page, 2000)) failed.push(`moved by itself, ${width} px, ${at}: ${what}`);
    }
    let pressed = 0;
    for (const control of CONTROLS) {
      if (phone ? control.wide : control.phone) continue;
      for (const way of (control.by ?? EVERYWHERE).filter((w) => ways.includes(w))) {
        await one(page, control, way).then(() => { pressed += 1; }, (e) => failed.push(`${way}, ${control.css}: ${e.message.split('\n')[0]}`));
      }
    }
    console.log(`${width} px: ${pressed} presses`);
    assert.deepEqual(failed, []);
    assert.deepEqual(page.problems, []);
    await page.close();
  }
}
