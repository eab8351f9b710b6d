'use strict';
// The chosen cell: its bytes by category, and by layer. Data is what page.py wrote into the page.
const data = JSON.parse(document.getElementById('data').textContent);
const choose = Object.fromEntries(['panel', 'depth', 'batch'].map(name => [name, document.getElementById(name)]));
const gib = bytes => {
  const value = bytes / 2 ** 30;
  return value >= 1 ? value.toFixed(2) + ' GiB' : (bytes / 2 ** 20).toFixed(value * 1024 >= 10 ? 0 : 2) + ' MiB';
};
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const piece = (bytes, whole, colour, title) => {
  const part = make('i', {title: `${title}: ${gib(bytes)}`});
  part.style.width = `${100 * bytes / whole}%`;
  part.style.background = colour;
  return part;
};

function show() {
  const [panel, depth, batch] = ['panel', 'depth', 'batch'].map(name => Number(choose[name].value));
  const cell = data.cells.find(each => each.panel === panel && each.depth === depth && each.batch === batch);
  const usable = data.panels[panel].usable;
  document.querySelectorAll('.heat td').forEach(place => place.classList.toggle('chosen',
    Number(place.dataset.panel) === panel && Number(place.dataset.depth) === depth
    && Number(place.dataset.batch) === batch));
  document.getElementById('verdict').textContent = cell.verdict;
  const gauge = document.getElementById('gauge');
  const categories = document.getElementById('categories');
  const layers = document.getElementById('layers');
  [gauge, categories, layers].forEach(element => element.replaceChildren());
  document.getElementById('by-layer').hidden = !cell.layers.length;
  if (cell.total === null) return;
  const whole = Math.max(cell.total, usable) * 1.02;
  const parts = cell.bytes.length ? data.categories.map((name, index) => [name, cell.bytes[index], data.colours[index]])
    : [['measured', cell.total, '#3f8fc0']];
  const bar = make('div', {className: 'bar'}, ...parts.map(([name, bytes, colour]) => piece(bytes, whole, colour, name)));
  const limit = make('div', {className: 'limit'}, make('span', {textContent: `usable ${gib(usable)}`}));
  limit.style.left = `${100 * usable / whole}%`;
  gauge.append(bar, limit);
  for (const [name, bytes, colour] of parts.filter(part => part[1])) {
    const swatch = make('span', {className: 'swatch'});
    swatch.style.background = colour;
    categories.append(make('tr', {}, make('td', {}, swatch), make('td', {textContent: name}),
      make('td', {textContent: gib(bytes)}), make('td', {textContent: `${(100 * bytes / cell.total).toFixed(1)} %`})));
  }
  const sum = numbers => numbers.reduce((left, right) => left + right, 0);
  const most = Math.max(1, ...cell.layers.map(layer => layer[1] + layer[2] + layer[3]));
  const add = (name, bytes) => layers.append(make('tr', {className: bytes[2] ? 'augmented' : ''},
    make('td', {textContent: name}),
    make('td', {}, make('div', {className: 'bar'},
      ...bytes.map((count, index) => piece(count, most, data.layer_colours[index], data.layer_parts[index])))),
    make('td', {textContent: gib(sum(bytes))})));
  const large = cell.layers.filter(([, ...bytes]) => sum(bytes) >= 0.005 * most);
  const small = cell.layers.filter(([, ...bytes]) => sum(bytes) < 0.005 * most);
  for (const [name, ...bytes] of large) add(data.names[name], bytes);
  if (small.length) add(`${small.length} smaller layers`, [1, 2, 3].map(part => sum(small.map(layer => layer[part]))));
}

Object.values(choose).forEach(element => element.addEventListener('change', show));
document.querySelectorAll('.heat td').forEach(place => place.addEventListener('click', () => {
  for (const name of Object.keys(choose)) choose[name].value = place.dataset[name];
  show();
}));
[choose.panel.value, choose.depth.value, choose.batch.value] = data.first;
show();
