// The state of the pool, as /events tells it, and when to draw what.
// All words come from outside (names, models, reasons): they enter the page as text only.

const $ = (id) => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';
const pool = { workers: new Map(), steps: new Map(), queue: null, health: null, weights: [], refits: [], router: null, previews: null };
let skew = 0; // seconds that the router's clock is ahead of ours
const painters = []; // [names of the parts that it shows, function]
let dirty = new Set(), changedWorkers = new Set(), painting = false;

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.includes('-')) element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function draw(tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
const dress = (element, name) => { if (element.className !== name) element.className = name; };
const now = () => Date.now() / 1000 + skew;
const many = (count, one, more = `${one}s`) => `${count} ${count === 1 ? one : more}`;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 5940) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, '0')} s`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

const KINDS = [
  ['free', 'free', 'ready for work'],
  ['busy', 'busy', 'work occupies slots'],
  ['changing', 'getting ready', 'starts, wakes, changes weights, or is on trial'],
  ['asleep', 'asleep', 'its GPU memory is released'],
  ['out', 'taken out', 'quarantined or draining'],
  ['failed', 'failed', 'it does not answer, or was given up'],
];

function kindOf(worker) {
  if (worker.admin !== 'enabled') return 'out';
  const phase = worker.launch && worker.launch.phase;
  if (worker.health === 'unhealthy' || worker.weights === 'failed' || phase === 'failed' || phase === 'exited') return 'failed';
  if (worker.memory !== 'awake') return worker.memory === 'waking' ? 'changing' : 'asleep';
  if (!worker.routable) return 'changing';
  return worker.slots_in_use ? 'busy' : 'free';
}

const WORDS = {
  not_probed_yet: 'not probed yet', falling_asleep: 'falling asleep', weights_updating: 'changing weights',
  weights_behind: 'loading missed weights', weights_failed: 'refuses its weights', suspect: 'perhaps replaced',
  suspect_asleep: 'seems asleep', on_trial: 'on trial', backpressure: 'asked for a pause', warming: 'starting',
};

function stateOf(worker) {
  const kind = kindOf(worker);
  if (kind === 'free' || kind === 'busy') return kind;
  return worker.reasons.map((reason) => WORDS[reason] || reason.replaceAll('_', ' ')).join(', ') || kind;
}

function whyOf(worker) {
  if (worker.routable) return '';
  const launched = worker.launch && worker.launch.detail;
  const trial = worker.trial && worker.trial.reason;
  if (worker.health !== 'healthy' && worker.admin === 'enabled') return launched || worker.health_reason || '';
  return worker.weights_reason || trial || worker.suspicion || '';
}

function merge(told) {
  skew = told.now - Date.now() / 1000;
  for (const name of ['queue', 'health', 'weights', 'refits', 'router', 'previews']) {
    if (name in told) { pool[name] = told[name]; dirty.add(name); }
  }
  if (told.series) {
    for (const row of told.series.steps) pool.steps.set(row[0], row);
    pool.series = told.series;
    for (const number of pool.steps.keys()) if (number <= told.series.last - 90) pool.steps.delete(number);
    dirty.add('series');
  }
}

function onSnapshot(told) {
  pool.workers = new Map(told.workers.map((worker) => [worker.worker_id, worker]));
  pool.steps.clear();
  merge(told);
  changedWorkers = null; // all
  dirty.add('workers');
  paintSoon();
}

function onChange(told) {
  for (const [id, fields] of Object.entries(told.workers || {})) {
    if (fields === null) pool.workers.delete(id); else pool.workers.set(id, { ...pool.workers.get(id), ...fields });
    if (changedWorkers) changedWorkers.add(id);
    dirty.add('workers');
  }
  merge(told);
  paintSoon();
}

function paintSoon() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    const parts = dirty, ids = changedWorkers;
    dirty = new Set(); changedWorkers = new Set();
    for (const [names, paint] of painters) if (names.some((name) => parts.has(name))) paint(ids);
  });
}

function repaint(...names) { for (const name of names) dirty.add(name); paintSoon(); }

let source = null, heard = 0;

function follow() {
  if (source) source.close();
  source = new EventSource('/events');
  heard = Date.now();
  source.addEventListener('snapshot', (event) => { listen(); onSnapshot(JSON.parse(event.data)); });
  source.addEventListener('change', (event) => { listen(); onChange(JSON.parse(event.data)); });
  source.onerror = () => {
    connection('off', source.readyState === EventSource.CLOSED ? 'Refused; trying again' : 'Reconnecting');
  };
}

function listen() { heard = Date.now(); connection('on', 'Live'); }
function connection(state, words) { dress($('live'), state); say($('live').lastElementChild, words); }

// The browser reconnects by itself, but not after a refusal, nor if the network went silent.
setInterval(() => {
  const quiet = Date.now() - heard;
  if (quiet > 30000 || (source.readyState === EventSource.CLOSED && quiet > 5000)) follow();
}, 2500);

// At a glance.

const legend = new Map(), shares = new Map();
let only = null; // the kind of workers that the table shows
for (const [kind, word, meaning] of KINDS) {
  const count = make('b');
  const button = make('button', { type: 'button', title: meaning, 'aria-pressed': 'false' }, make('i', { className: `dot ${kind}` }), count, ` ${word}`);
  button.onclick = () => { only = only === kind ? null : kind; repaint('workers'); };
  legend.set(kind, [button, count]);
  shares.set(kind, make('i', { className: kind }));
}
$('legend').append(...[...legend.values()].map(([button]) => button));
$('shares').append(...shares.values());

painters.push([['workers', 'health', 'queue'], () => {
  const counts = Object.fromEntries(KINDS.map(([kind]) => [kind, 0]));
  for (const worker of pool.workers.values()) counts[kindOf(worker)] += 1;
  const total = pool.workers.size, serving = counts.free + counts.busy;
  const parts = [];
  if (counts.changing) parts.push(`${counts.changing} getting ready`);
  if (counts.asleep) parts.push(`${counts.asleep} asleep`);
  if (counts.out) parts.push(`${counts.out} taken out`);
  if (counts.failed) parts.push(`${counts.failed} failed`);
  let words = total ? `${serving} of ${many(total, 'worker')} serve` : 'No workers are registered';
  if (total && serving === total) words = total === 1 ? 'The worker serves' : `All ${total} workers serve`;
  if (total && !serving) words = 'No worker serves';
  if (parts.length) words += `: ${parts.join(', ')}`;
  if (pool.health && pool.health.state === 'failing') words += '. State does not reach the disk';
  say($('verdict'), words);
  $('shares').setAttribute('aria-label', KINDS.map(([kind, word]) => `${counts[kind]} ${word}`).join(', '));
  for (const [kind, [button, count]] of legend) {
    say(count, String(counts[kind]));
    button.hidden = !counts[kind] && only !== kind;
    button.setAttribute('aria-pressed', String(only === kind));
    shares.get(kind).style.flexGrow = counts[kind];
    shares.get(kind).hidden = !counts[kind];
  }
  document.title = total ? `${serving}/${total} · Diffusion router` : 'Diffusion router';
}]);

painters.push([['router'], () => say($('version'), `SGLang diffusion router ${pool.router.version}`)]);
