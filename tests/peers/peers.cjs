// Programs of others against a gateway: node peers.cjs NAME PORT HTTP_PORT DIRECTORY. Ends with 0 when they got what they should.
// They are found in NODE_PATH; tests/peers/install.sh installs them.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');

const [, , name, port, http, directory] = process.argv;
const url = `mqtt://127.0.0.1:${port}`;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function until(what, done, limit = 60_000) {
  const end = Date.now() + limit;
  while (!(await done())) {
    if (Date.now() > end) throw new Error(`not within ${limit} ms: ${what}`);
    await sleep(50);
  }
}

/** More than clients without flow control of their own have in flight. */
const BURST = 22_000;

/** A flow with overlapping filters and a burst, in one version of the protocol. */
function flow(version) {
  const id = (text) => `${text}${version}`;
  const broker = { id: id('broker'), type: 'mqtt-broker', broker: '127.0.0.1', port, clientid: id('node-red-'), protocolVersion: String(version), keepalive: '60', cleansession: true, autoConnect: true, autoUnsubscribe: true };
  const input = (filter, n) => ({ id: id(`in${n}`), z: id('tab'), type: 'mqtt in', topic: filter, qos: '1', datatype: 'utf8', broker: broker.id, nl: false, rap: true, rh: 0, wires: [[id(`sink${n}`)]] });
  const sink = (filter, n) => ({ id: id(`sink${n}`), z: id('tab'), type: 'function', func: `global.get('seen').push(['${filter}', msg.topic, msg.payload]); return null;`, outputs: 1, wires: [[]] });
  const filters = [`v${version}/#`, `v${version}/a/+`, `v${version}/a/b`, `burst${version}/x`];
  return [
    { id: id('tab'), type: 'tab', label: id('v') }, broker,
    ...filters.flatMap((f, n) => [input(f, n), sink(f, n)]),
    { id: id('inject'), z: id('tab'), type: 'inject', once: true, onceDelay: 3, props: [], wires: [[id('many')]] },
    { id: id('many'), z: id('tab'), type: 'function', func: `for (let i = 0; i < ${BURST}; i += 1) node.send({ topic: 'burst${version}/x', payload: String(i) }); return null;`, outputs: 1, wires: [[id('out')]] },
    { id: id('out'), z: id('tab'), type: 'mqtt out', qos: '1', retain: 'false', broker: broker.id, wires: [] },
  ];
}

const programs = {
  /** Node-RED: one message for each filter that matches, and a burst of QoS 1, in both versions. */
  async 'node-red'() {
    const RED = require('node-red');
    const server = require('node:http').createServer();
    const seen = [];
    RED.init(server, { userDir: directory, httpAdminRoot: false, httpNodeRoot: false, functionGlobalContext: { seen }, logging: { console: { level: 'warn' } }, flowFile: path.join(directory, 'flows.json') });
    fs.writeFileSync(path.join(directory, 'flows.json'), JSON.stringify([...flow(4), ...flow(5)]));
    await RED.start();
    for (const version of [4, 5]) {
      const burst = () => seen.filter(([f]) => f === `burst${version}/x`);
      await until(`the burst in version ${version}`, () => burst().length >= BURST);
      await sleep(500);
      assert.deepEqual(burst().map(([, , payload]) => Number(payload)), Array.from({ length: BURST }, (_, i) => i), 'each once, in order');
    }
    const client = await require('mqtt').connectAsync(url);
    for (const version of [4, 5]) await client.publishAsync(`v${version}/a/b`, 'once', { qos: 1 });
    await until('what overlaps', () => seen.filter(([, , p]) => p === 'once').length >= 6);
    await sleep(500);
    const counts = new Map();
    for (const [f, , p] of seen) if (p === 'once') counts.set(f, (counts.get(f) ?? 0) + 1);
    // Version 3.1.1 may send one copy or several to overlapping filters; Node-RED gives each to every filter that matches.
    for (const f of ['v5/#', 'v5/a/+', 'v5/a/b']) assert.equal(counts.get(f), 1, `${f}: ${JSON.stringify([...counts])}`);
    for (const f of ['v4/#', 'v4/a/+', 'v4/a/b']) assert.ok(counts.get(f) >= 1, `${f}: ${JSON.stringify([...counts])}`);
    await client.endAsync();
    await RED.stop();
  },

  /** The part of zigbee2mqtt that speaks MQTT, without a radio: its will, retained states, commands. */
  async zigbee2mqtt() {
    fs.writeFileSync(path.join(directory, 'configuration.yaml'), `mqtt:\n  server: ${url}\n  base_topic: zigbee2mqtt\n  version: 5\nserial:\n  port: /dev/null\n`);
    process.env.ZIGBEE2MQTT_DATA = directory;
    const root = path.dirname(require.resolve('zigbee2mqtt/package.json'));
    const Mqtt = require(path.join(root, 'dist/mqtt.js')).default;
    const EventBus = require(path.join(root, 'dist/eventBus.js')).default;
    const settings = require(path.join(root, 'dist/util/settings.js'));
    settings.reRead();
    require(path.join(root, 'dist/util/logger.js')).default.init?.();
    const bus = new EventBus();
    const commands = [];
    bus.onMQTTMessage('test', (m) => commands.push([m.topic, m.message]));
    const mqtt = new Mqtt(bus);
    await mqtt.connect();
    await mqtt.subscribe('zigbee2mqtt/+/set');
    await mqtt.publish('lamp', JSON.stringify({ state: 'ON' }), { clientOptions: { retain: true, qos: 1 } });
    const client = await require('mqtt').connectAsync(url, { protocolVersion: 5 });
    const got = [];
    client.on('message', (topic, payload, packet) => got.push([topic, String(payload), packet.retain]));
    await client.subscribeAsync('zigbee2mqtt/#', { qos: 1 });
    await until('the retained state', () => got.some(([t, p, r]) => t === 'zigbee2mqtt/lamp' && p === '{"state":"ON"}' && r));
    await client.publishAsync('zigbee2mqtt/lamp/set', '{"state":"OFF"}', { qos: 1 });
    await until('the command', () => commands.some(([t, m]) => t === 'zigbee2mqtt/lamp/set' && m === '{"state":"OFF"}'));
    // It dies: its will says so, retained.
    mqtt.client.stream.destroy();
    mqtt.client.end(true);
    await until('the will', () => got.some(([t, p]) => t === 'zigbee2mqtt/bridge/state' && p === '{"state":"offline"}'));
    await client.endAsync();
  },

  /** A Sparkplug B edge node: birth, data, and death by its will. */
  async sparkplug() {
    const sparkplug = require('sparkplug-client');
    const client = await require('mqtt').connectAsync(url);
    const got = [];
    client.on('message', (topic, payload) => got.push([topic, payload.length]));
    await client.subscribeAsync('spBv1.0/#', { qos: 1 });
    const node = sparkplug.newClient({ serverUrl: url, username: '', password: '', groupId: 'plant', edgeNode: 'press', clientId: 'press', version: 'spBv1.0', keepalive: 5 });
    const metric = (value) => ({ timestamp: Date.now(), metrics: [{ name: 'force', value, type: 'Double' }] });
    node.on('birth', () => node.publishNodeBirth(metric(1)));
    await until('the birth', () => got.some(([t]) => t === 'spBv1.0/plant/NBIRTH/press'));
    node.publishNodeData(metric(2.5));
    await until('the data', () => got.some(([t, n]) => t === 'spBv1.0/plant/NDATA/press' && n > 0));
    // No goodbye.
    node.client.stream.destroy();
    node.client.end(true);
    await until('the death', () => got.some(([t]) => t === 'spBv1.0/plant/NDEATH/press'));
    await client.endAsync();
  },

  /** mqtt.js: TCP and websocket at every path that libraries ask for, both versions, every QoS, and a burst. */
  async mqttjs() {
    const mqtt = require('mqtt');
    const places = [url, ...['', '/mqtt', '/mqtt/', '/ws'].map((at) => `ws://127.0.0.1:${http}${at}`)];
    for (const place of places) {
      for (const protocolVersion of [4, 5]) {
        const client = await mqtt.connectAsync(place, { protocolVersion, reconnectPeriod: 0 });
        const got = [];
        client.on('message', (topic, payload) => got.push(String(payload)));
        await client.subscribeAsync('js/#', { qos: 2 });
        for (const qos of [0, 1, 2]) await client.publishAsync('js/x', `${place} ${qos}`, { qos });
        await until(`three messages at ${place}`, () => got.length === 3);
        assert.deepEqual(got, [0, 1, 2].map((qos) => `${place} ${qos}`));
        if (place === url || place.endsWith('/mqtt')) {
          await client.subscribeAsync('burst', { qos: 1 });
          got.length = 0;
          await Promise.all(Array.from({ length: BURST }, (_, i) => client.publishAsync('burst', String(i), { qos: 1 })));
          await until('the burst', () => got.length >= BURST);
          assert.deepEqual(got, Array.from({ length: BURST }, (_, i) => String(i)), 'each once, in order');
        }
        await client.endAsync();
      }
    }
  },
};

programs[name]().then(() => { console.log(`${name}: ok`); process.exit(0); }, (e) => { console.error(e); process.exit(1); });
