// Queue, unfinished jobs, weights.

function fact(name, value) { return make('div', {}, make('dt', { textContent: name }), make('dd', { textContent: value })); }

painters.push([['queue'], () => {
  const queue = pool.queue;
  say($('queue-count'), `limit ${queue.limit}`);
  const facts = make('dl', { className: 'facts' }, fact('Waiting', String(queue.waiting)), fact('Oldest', queue.waiting ? duration(queue.oldest_wait_seconds) : '–'), fact('Begun', `${short(queue.drain_rate_per_second * 60)} / min`));
  const list = make('div', { className: 'rows' });
  const groups = [...queue.groups].sort((one, other) => other.waiting - one.waiting);
  for (const group of groups.slice(0, 12)) {
    const what = [group.priority === 'normal' ? '' : `${group.priority} priority`, group.task, group.client ? `from ${group.client}` : '', group.pool ? `in ${group.pool}` : ''].filter(Boolean).join(' ');
    list.append(make('div', {}, make('span', {}, make('span', { textContent: group.model || 'any model' }), make('small', { className: 'soft', textContent: what })), make('span', { textContent: String(group.waiting) }), make('span', { className: 'soft', textContent: duration(group.oldest_wait_seconds) })));
  }
  if (groups.length > 12) list.append(make('div', { className: 'soft', textContent: `and ${groups.length - 12} more groups` }));
  if (!groups.length) list.append(make('p', { className: 'empty', textContent: 'No request waits for a worker.' }));
  $('queue-card').replaceChildren(facts, list);
}]);

const jobs = new Map();

painters.push([['workers'], () => {
  const found = new Map();
  let total = 0;
  for (const worker of pool.workers.values()) {
    total += worker.jobs;
    let line = 0;
    for (const work of worker.work) {
      if (work.began === null) line += 1;
      if (work.kind === 'job') found.set(`${worker.worker_id} ${work.job_id}`, [worker, work, line]);
    }
  }
  say($('jobs-count'), total ? String(total) : '');
  for (const [id, job] of jobs) if (!found.has(id)) { job.element.remove(); jobs.delete(id); }
  const list = jobsList();
  for (const [id, [worker, work, line]] of found) {
    if (!jobs.has(id) && jobs.size < 40) jobs.set(id, newJob(list));
    const job = jobs.get(id);
    if (!job) continue;
    job.work = work; job.line = line;
    say(job.where, wordOf(work.endpoint));
    say(job.who, `on ${worker.name}`);
    progress(job.bar, job.time, work, line);
  }
  $('no-jobs').hidden = jobs.size > 0;
}]);

function jobsList() {
  if (!$('jobs-list')) $('jobs-card').replaceChildren(make('div', { className: 'rows', id: 'jobs-list' }), make('p', { className: 'empty', id: 'no-jobs', textContent: 'No video or mesh is being made.' }));
  return $('jobs-list');
}

function newJob(list) {
  const job = { where: make('span'), who: make('small', { className: 'soft cut' }), bar: make('i'), time: make('span', { className: 'soft' }) };
  job.element = make('div', { className: 'job' }, make('span', {}, job.where, job.who), make('div', { className: 'bar' }, job.bar), job.time);
  list.append(job.element);
  return job;
}

setInterval(() => { for (const job of jobs.values()) progress(job.bar, job.time, job.work, job.line); }, 1000);

// The versions of each model: who has which, and when they came.

const lanes = new Map();

painters.push([['weights', 'workers', 'refits', 'series'], () => {
  const shown = new Set();
  for (const ledger of pool.weights) {
    const key = `${ledger.pool}\n${ledger.model}`;
    shown.add(key);
    if (!lanes.has(key)) lanes.set(key, newLane(ledger));
    fillLane(lanes.get(key), ledger);
    if (lanes.get(key).element.parentNode !== $('weights-card')) $('weights-card').append(lanes.get(key).element);
  }
  for (const [key, lane] of lanes) if (!shown.has(key)) { lane.element.remove(); lanes.delete(key); }
  let empty = $('weights-card').querySelector(':scope > .empty');
  if (!empty) { empty = make('p', { className: 'empty', textContent: 'No model is known yet.' }); $('weights-card').prepend(empty); }
  empty.hidden = shown.size > 0;
}]);

function newLane(ledger) {
  const lane = { head: make('h3'), versions: make('div', { className: 'versions' }), error: make('p', { className: 'error' }), svg: draw('svg', { role: 'img' }) };
  lane.element = make('div', { className: 'model' }, lane.head, lane.versions, lane.error, make('div', { className: 'lane' }, lane.svg));
  return lane;
}

function fillLane(lane, ledger) {
  const members = [...pool.workers.values()].filter((worker) => worker.kind !== 'http' && worker.pool === ledger.pool && worker.models && (worker.models.includes(ledger.model) || worker.model_path === ledger.model));
  const versions = new Map();
  for (const worker of members) {
    const version = worker.weight_version;
    if (!versions.has(version)) versions.set(version, []);
    versions.get(version).push(worker.name);
  }
  const notes = [ledger.pool === 'default' ? '' : `pool ${ledger.pool}`, `version ${ledger.weight_version}`, ledger.label || '', ledger.run ? `run ${ledger.run}` : '', ledger.pending.length ? `${many(ledger.pending.length, 'change')} pending` : ''].filter(Boolean).join(' · ');
  const key = JSON.stringify([ledger.model, notes, [...versions], ledger.last_error]);
  if (lane.key !== key) {
    lane.key = key;
    lane.head.replaceChildren(ledger.model, make('small', { textContent: notes }));
    lane.versions.replaceChildren();
    for (const [version, names] of [...versions].sort((one, other) => (other[0] ?? -1) - (one[0] ?? -1))) {
      const full = make('i'); full.style.transform = `scaleX(${names.length / members.length})`;
      const who = names.length > 6 ? `${many(names.length, 'worker')}: ${names.slice(0, 4).join(', ')}, …` : names.join(', ');
      lane.versions.append(make('b', { textContent: version === null ? 'not known' : `v${version}` }), make('div', { className: version === ledger.weight_version ? 'bar' : 'bar old' }, full), make('span', { className: 'soft cut', textContent: who, title: names.join(', ') }));
      lane.versions.lastChild.style.maxWidth = 'none';
    }
    say(lane.error, ledger.last_error || '');
  }
  const refits = pool.refits.filter((refit) => refit.model === ledger.model && refit.pool === ledger.pool);
  timeline(lane, refits, ledger);
}

function timeline(lane, refits, ledger) {
  const width = lane.svg.clientWidth, end = now(), open = refits.some((refit) => refit.ended === null), span = minutes();
  const key = `${width} ${span} ${open ? end : Math.floor(end / 10)} ${JSON.stringify(refits)}`;
  if (!width || lane.plotted === key) return;
  lane.plotted = key;
  const x = (at) => Math.max(0, Math.min(1, 1 - (end - at) / (span * 60))) * width;
  const parts = [draw('line', { class: 'grid', x1: 0, x2: width, y1: 34.5, y2: 34.5 }), draw('text', { x: 0, y: 50 }, `−${span} min`), draw('text', { x: width, y: 50, 'text-anchor': 'end' }, 'now')];
  let free = -1, told = 0;
  for (const refit of refits) {
    const until = refit.ended ?? end;
    if (until < end - span * 60) continue;
    told += 1;
    const from = x(refit.began), size = Math.max(3, x(until) - from);
    const bar = draw('rect', { class: `refit${refit.ended === null ? ' open' : refit.failed ? ' bad' : ''}`, x: Math.min(from, width - size), y: 20, width: size, height: 14, rx: 1.5 });
    const took = `${many(refit.workers, 'worker')}, ${duration(until - refit.began)}${refit.failed ? `, ${refit.failed} without success` : ''}`;
    bar.append(draw('title', {}, `${refit.weight_version === null ? 'No version' : `v${refit.weight_version}`}${refit.label ? ` ${refit.label}` : ''} (${refit.kind}): ${took}`));
    parts.push(bar);
    const name = refit.weight_version === null ? '' : `v${refit.weight_version}`;
    if (name && from > free) { parts.push(draw('text', { x: Math.min(from, width - 24), y: 14 }, name)); free = from + 10 + 7 * name.length; }
  }
  if (!told) parts.push(draw('text', { x: width / 2, y: 24, 'text-anchor': 'middle' }, 'no weight change'));
  lane.svg.replaceChildren(...parts);
  lane.svg.setAttribute('aria-label', `${many(told, 'weight change')} of ${ledger.model} in 15 minutes`);
}
