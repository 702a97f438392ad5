// How long from PUBLISH to pixels: node latency.mjs [COUNT]. A message every 200 ms or so, with QoS 1 (so it is on disk before anybody sees it), alone and beside
// 1,000 other messages a second; until the frame after the one in which its text was written.

import { launch, load, open, sleep, until, Weir } from './lib.mjs';

const COUNT = Number(process.argv[2] ?? 300);
const browser = await launch();
for (const others of [0, 1000]) {
  const weir = await Weir.start();
  const sent = new Map();
  const beside = others > 0 ? load(weir.mqtt, others, (n) => [`other/${n % 500}`, String(n)]) : undefined;
  const page = await open(browser, weir.url);
  weir.publish('a/probe', 'p-1');
  await until('its row', () => page.$('.row[title="a/probe"]'));
  await page.evaluate(() => {
    globalThis.seen = [];
    let last = '';
    new MutationObserver(() => {
      const text = document.querySelector('.row[title="a/probe"] .value')?.textContent ?? '';
      if (text === last) return;
      last = text;
      // After the frame that has it.
      requestAnimationFrame(() => { const c = new MessageChannel(); c.port1.onmessage = () => globalThis.seen.push([text, Date.now()]); c.port2.postMessage(0); });
    }).observe(document.querySelector('.rows .inner'), { subtree: true, characterData: true, childList: true });
  });
  let next = 0;
  let pause = 0;
  const probe = load(weir.mqtt, 50, (n) => {
    if (n >= pause) { pause = n + 8 + Math.floor(Math.random() * 5); sent.set(`p${++next}`, Date.now()); return ['a/probe', `p${next}`]; }
    return ['a/nothing', 'x'];
  }, 1);
  await until('all were sent', () => next >= COUNT, COUNT * 400 + 10_000);
  await sleep(500);
  probe.end();
  beside?.end();
  const seen = await page.evaluate(() => globalThis.seen);
  const times = seen.filter(([t]) => sent.has(t)).map(([t, at]) => at - sent.get(t)).sort((a, b) => a - b);
  const q = (p) => times[Math.min(times.length - 1, Math.floor(times.length * p))];
  console.log(`beside ${others} others a second: ${times.length} of ${next} seen, p50 ${q(0.5)} ms, p90 ${q(0.9)}, p99 ${q(0.99)}, most ${q(1)}`);
  await page.close();
  await weir.stop();
}
await browser.close();
