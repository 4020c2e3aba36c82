// One row per worker. A row changes only where its worker has changed.

const rows = new Map();
const UNITS = { video: 832 * 480 * 50 * 81 / 1e6, mesh: 1024 * 1024 * 50 / 1e6 };

function newRow(id) {
  const cell = (name) => make('td', { className: name, role: 'cell' });
  const row = {
    name: make('button', { type: 'button' }), place: make('small', { className: 'cut' }), dot: make('i'), word: make('b', { className: 'plain' }), why: make('small', { className: 'cut' }),
    slots: cell('slots'), work: cell('work'), speed: cell('n speed'), weights: cell('n weights'), serves: cell('serves cut'), restarts: cell('n restarts'), gpu: cell('gpu'),
  };
  row.name.onclick = () => showWorker(id);
  row.word.style.fontWeight = '400';
  row.element = make('tr', { role: 'row' },
    make('td', { className: 'name', role: 'cell' }, row.name, row.place),
    make('td', { className: 'state', role: 'cell' }, make('span', {}, row.dot, row.word), row.why),
    row.slots, row.work, row.speed, row.weights, row.serves, row.restarts, row.gpu);
  row.what = make('span'); row.time = make('span', { className: 'soft' }); row.bar = make('i');
  row.track = make('div', { className: 'bar' }, row.bar);
  row.line = make('div', {}, row.what, row.time);
  row.work.append(row.line, row.track);
  return row;
}

function fill(row, worker) {
  const kind = kindOf(worker), launch = worker.launch;
  row.worker = worker;
  say(row.name, worker.name);
  const place = worker.name === worker.display_id ? '' : worker.display_id;
  say(row.place, worker.pool === 'default' ? place : [worker.pool, place].filter(Boolean).join(' · '));
  dress(row.dot, `dot ${kind}`);
  say(row.word, stateOf(worker));
  say(row.why, whyOf(worker)); row.why.title = row.why.textContent;
  fillSlots(row, worker);
  say(row.speed, speedOf(worker));
  say(row.weights, worker.models === null ? '–' : worker.weight_version === null ? 'not known' : `v${worker.weight_version}`);
  const serves = worker.kind === 'http' ? ['plain HTTP'] : worker.models || [];
  say(row.serves, serves.join(', ')); row.serves.title = [...serves, ...(worker.task_types || [])].join(', ');
  say(row.restarts, launch ? String(launch.restarts) : '');
  say(row.gpu, launch && launch.gpus ? launch.gpus.join(', ') : '');
  tick(row);
}

function fillSlots(row, worker) {
  const key = `${worker.max_concurrency} ${worker.slots_in_use} ${worker.jobs} ${worker.ghosts}`;
  if (row.slotsKey === key) return;
  row.slotsKey = key;
  // Workers take more jobs than they have slots, and make them one after another.
  const [used, line] = slotsOf(worker);
  const words = `${used} of ${many(worker.max_concurrency, 'slot')} in use`;
  const notes = [line ? `${line} in line` : '', worker.jobs ? many(worker.jobs, 'job') : '', worker.ghosts ? many(worker.ghosts, 'ghost') : ''].filter(Boolean);
  row.slots.title = [words, ...notes].join(', ');
  const bar = make('span', { role: 'img', 'aria-label': row.slots.title });
  if (worker.max_concurrency <= 8) {
    for (let slot = 0; slot < worker.max_concurrency; slot += 1) bar.append(make('i', { className: slot < used ? 'on' : '' }));
  } else {
    const full = make('i'); full.style.transform = `scaleX(${used / worker.max_concurrency})`;
    bar.append(make('span', { className: 'bar' }, full));
  }
  row.slots.replaceChildren(bar, make('small', { textContent: ` ${used}/${worker.max_concurrency}${line ? ` + ${line}` : ''}` }));
}

function slotsOf(worker) {
  const used = Math.min(worker.slots_in_use, worker.max_concurrency);
  return [used, worker.slots_in_use - used];
}

function speedOf(worker) {
  const learnt = Object.entries(worker.seconds_per_unit_of_work).map(([endpoint, seconds]) => [wordOf(endpoint), seconds * (UNITS[endpoint] || 1024 * 1024 * 30 / 1e6)]);
  const best = learnt.find(([word]) => word === 'image') || learnt[0];
  return best ? `${duration(best[1])} / ${best[0]}` : '–';
}

function wordOf(endpoint) {
  const words = { '/v1/images/generations': 'image', '/v1/images/edits': 'edit', '/rollout/generate': 'rollout', '/v1/diffusion/generate': 'generation', '/v1/actions/generations': 'action', '/vertex_generate': 'batch' };
  return words[endpoint] || endpoint || 'work';
}

function tick(row) {
  const work = row.worker.work, first = work.find((each) => each.began !== null) || work[0];
  row.busy = Boolean(first);
  row.track.hidden = !first;
  if (!first) { say(row.what, ''); say(row.time, ''); return; }
  const more = row.worker.slots_in_use - 1;
  const kind = { ghost: ', its client left', session: 'session' }[first.kind] || '';
  say(row.what, `${first.kind === 'session' ? kind : wordOf(first.endpoint) + kind}${more > 0 ? ` + ${more}` : ''}`);
  progress(row.bar, row.time, first);
}

const ordinal = (number) => `${number}${(number % 100 > 10 && number % 100 < 14) ? 'th' : { 1: 'st', 2: 'nd', 3: 'rd' }[number % 10] || 'th'}`;

function progress(bar, words, work, line) {
  if (work.began === null) { say(words, line ? `${ordinal(line)} in line` : 'waits at the worker'); bar.style.transform = 'scaleX(0)'; return; }
  const elapsed = Math.max(0, now() - work.began), expected = work.expected_seconds;
  say(words, expected ? `${seconds(elapsed)} / ${seconds(expected)} s` : `${seconds(elapsed)} s`);
  const share = expected ? Math.min(1, elapsed / expected) : 0;
  const moved = Number(bar.dataset.share || 0) > share;
  bar.style.transition = moved ? 'none' : '';
  bar.dataset.share = share;
  bar.style.transform = `scaleX(${share.toFixed(3)})`;
  dress(bar, expected && elapsed > 1.5 * expected + 1 ? 'late' : '');
}

const seconds = (value) => value < 10 ? value.toFixed(1) : String(Math.round(value));

setInterval(() => { for (const row of rows.values()) if (row.busy && row.element.isConnected) tick(row); }, 1000);

function wanted(worker) {
  if (only && kindOf(worker) !== only) return false;
  const word = $('find').value.trim().toLowerCase();
  return !word || [worker.name, worker.url, worker.pool, ...(worker.models || [])].some((text) => text.toLowerCase().includes(word));
}

painters.push([['workers'], (ids) => {
  for (const [id, row] of rows) if (!pool.workers.has(id)) { row.element.remove(); rows.delete(id); }
  let place = $('rows').firstElementChild, shown = 0, gpus = false;
  for (const [id, worker] of pool.workers) {
    const fresh = !rows.has(id);
    if (fresh) rows.set(id, newRow(id));
    const row = rows.get(id);
    if (fresh || !ids || ids.has(id)) fill(row, worker);
    if (row.element !== place) $('rows').insertBefore(row.element, place); else place = place.nextElementSibling;
    const hidden = !wanted(worker);
    if (row.element.hidden !== hidden) row.element.hidden = hidden;
    shown += !hidden;
    gpus = gpus || Boolean(worker.launch && worker.launch.gpus && worker.launch.gpus.length);
  }
  $('workers').classList.toggle('nogpu', !gpus);
  const total = pool.workers.size, slots = [...pool.workers.values()].reduce((sum, worker) => [sum[0] + slotsOf(worker)[0], sum[1] + worker.max_concurrency], [0, 0]);
  say($('workers-count'), shown === total ? `${total}, ${slots[0]} of ${many(slots[1], 'slot')} in use` : `${shown} of ${total} shown`);
  $('no-workers').hidden = shown > 0;
  say($('no-workers'), total ? 'No worker fits.' : 'Register one with POST /workers?url=http://host:port, or start the router with --launcher-config.');
  $('scale').hidden = !launchers().size;
  $('workers').classList.toggle('nolaunch', !launchers().size);
}]);

$('find').addEventListener('input', () => repaint('workers'));

function launchers() {
  const found = new Map();
  for (const worker of pool.workers.values()) if (worker.launch) found.set(worker.launch.launcher, (found.get(worker.launch.launcher) || 0) + 1);
  return found;
}
