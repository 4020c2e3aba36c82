// The last 15 minutes, drawn as SVG.

// Charts show the last 15 minutes, or less while the router is younger.
const SPANS = [2, 5, 15];

function minutes() {
  if (!pool.series) return SPANS.at(-1);
  const age = (pool.series.last - Math.min(...pool.steps.keys())) * pool.series.step_seconds / 60;
  return SPANS.find((span) => age <= span) || SPANS.at(-1);
}

const perMinute = (row) => row[1] * 60 / pool.series.step_seconds;
const CHARTS = [
  { kind: 'busy', title: 'Throughput', lines: [perMinute], names: [''], unit: 'per minute', show: (value) => short(value) },
  { kind: 'free', title: 'Time to answer', lines: [(row) => row[4], (row) => row[5]], names: ['p50 ', 'p99 '], show: duration },
  { kind: 'changing', title: 'Waiting', lines: [(row) => row[3]], names: [''], unit: 'requests', show: (value) => short(value) },
  { kind: 'failed', title: 'Errors', lines: [(row) => row[2]], names: [''], unit: 'in 10 s', show: (value) => short(value) },
];

function short(value) {
  if (value === null || value === undefined) return '–';
  if (value >= 10000) return `${(value / 1000).toFixed(0)}k`;
  return String(value < 10 && value % 1 ? value.toFixed(1) : Math.round(value));
}

function ceiling(value) {
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 8, 10].map((each) => each * size).find((each) => each >= value);
}

for (const chart of CHARTS) {
  chart.head = make('p');
  chart.svg = draw('svg', { role: 'img' });
  chart.tip = make('div', { className: 'tip', hidden: true });
  const card = make('div', { className: `card chart ${chart.kind}` }, make('h3', { textContent: chart.title }), chart.head, chart.svg, chart.tip);
  chart.svg.addEventListener('pointermove', (event) => point(chart, event));
  chart.svg.addEventListener('pointerleave', () => { chart.at = null; point(chart, null); });
  $('charts').append(card);
}
new ResizeObserver(() => repaint('series')).observe($('charts'));

function headline(chart, rows) {
  const recent = rows.slice(-6), sum = (column) => recent.reduce((total, row) => total + row[column], 0);
  const spent = Math.max(recent.length * pool.series.step_seconds, 1) / 60;
  if (chart.title === 'Throughput') return [short(sum(1) / spent), 'per minute'];
  if (chart.title === 'Waiting') {
    const oldest = pool.queue && pool.queue.waiting ? `oldest ${duration(pool.queue.oldest_wait_seconds)}` : 'requests';
    return [short(pool.queue ? pool.queue.waiting : 0), oldest];
  }
  if (chart.title === 'Errors') return [short(rows.reduce((total, row) => total + row[2], 0)), 'in 15 minutes'];
  const last = rows.findLast((row) => row[4] !== null);
  return last ? [duration(last[4]), `p99 ${duration(last[5])}`] : ['–', 'nothing done yet'];
}

painters.push([['series', 'queue'], () => {
  if (!pool.series) return;
  const rows = [...pool.steps.values()].sort((one, other) => one[0] - other[0]);
  const whole = rows.filter((row) => row[0] < pool.series.last);
  for (const chart of CHARTS) {
    const [value, unit] = headline(chart, chart.title === 'Errors' ? rows : whole);
    const key = `${value} ${unit}`;
    if (chart.key !== key) { chart.key = key; chart.head.replaceChildren(value, make('small', { textContent: unit })); }
    if (dirtySeries(chart)) plot(chart, whole);
  }
}]);

function dirtySeries(chart) {
  const key = `${pool.series.last} ${chart.svg.clientWidth}`;
  if (chart.plotted === key) return false;
  chart.plotted = key;
  return true;
}

function plot(chart, rows) {
  const width = chart.svg.clientWidth, height = chart.svg.clientHeight, foot = 16, top = 4;
  if (!width) return;
  const values = rows.flatMap((row) => chart.lines.map((line) => line(row) || 0));
  const most = ceiling(Math.max(...values, chart.unit ? 4 : 0.01));
  const span = minutes(), end = pool.series.last - 1, first = end - span * 60 / pool.series.step_seconds + 1;
  chart.x = (number) => (number - first) / (end - first) * width;
  chart.rows = rows;
  chart.svg.classList.toggle('none', !values.some(Boolean));
  const y = (value) => top + (height - foot - top) * (1 - value / most);
  const parts = [draw('line', { class: 'grid', x1: 0, x2: width, y1: y(0) + .5, y2: y(0) + .5 }), draw('line', { class: 'grid', x1: 0, x2: width, y1: y(most) + .5, y2: y(most) + .5 })];
  parts.push(draw('text', { x: 0, y: y(most) + 12 }, chart.show(most)));
  parts.push(draw('text', { x: 0, y: height - 2 }, `−${span} min`), draw('text', { x: width, y: height - 2, 'text-anchor': 'end' }, 'now'));
  chart.lines.forEach((line, index) => {
    let path = '', area = '', open = null, last = null;
    const close = () => { if (open !== null && index === 0) area += `L${last} ${y(0)}L${open} ${y(0)}Z`; open = null; };
    for (const row of rows) {
      const value = line(row);
      if (value === null) { close(); continue; }
      const at = chart.x(row[0]).toFixed(1), step = `${open === null ? 'M' : 'L'}${at} ${y(value).toFixed(1)}`;
      path += step; if (index === 0) area += step;
      if (open === null) open = at;
      last = at;
    }
    if (path.split('L').length === 1 && path) path += 'h.01';
    close();
    if (area) parts.push(draw('path', { class: 'area', d: area }));
    parts.push(draw('path', { class: `line${index ? ' faint' : ''}`, d: path }));
  });
  chart.cross = draw('line', { class: 'cross', y1: top, y2: y(0), visibility: 'hidden' });
  chart.svg.replaceChildren(...parts, chart.cross);
  chart.svg.setAttribute('aria-label', `${chart.title}: ${chart.head.textContent.replace(/(\d|–)([a-z])/, '$1 $2')}; most in 15 minutes ${chart.show(Math.max(0, ...values))}`);
  if (chart.at) point(chart, chart.at);
}

function point(chart, event) {
  const row = event && chart.rows && chart.rows.reduce((best, each) => {
    const far = Math.abs(chart.x(each[0]) - event.offsetX);
    return best === null || far < best[0] ? [far, each] : best;
  }, null);
  chart.at = event;
  chart.tip.hidden = !row;
  if (!row) { if (chart.cross) chart.cross.setAttribute('visibility', 'hidden'); return; }
  const at = chart.x(row[1][0]), began = pool.series.at - (pool.series.last - row[1][0]) * pool.series.step_seconds;
  chart.cross.setAttribute('x1', at); chart.cross.setAttribute('x2', at); chart.cross.setAttribute('visibility', 'visible');
  const told = chart.lines.map((line, index) => `${chart.names[index]}${chart.show(line(row[1]))}`).join(', ');
  say(chart.tip, `${told}\n${new Date(began * 1000).toLocaleTimeString()}`);
}
