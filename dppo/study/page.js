"use strict";
(() => {
  const root = document.documentElement;
  const stored = (kind, key, value) => {  // a browser may refuse to store anything for a file
    try { return value === undefined ? window[kind].getItem(key) : window[kind].setItem(key, value); } catch { return null; }
  };

  // -- light and dark
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = stored("localStorage", "dppo-theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored("localStorage", "dppo-theme", root.dataset.theme);
  });

  // -- tables that sort
  const parts = (text) => String(text).split(/(\d+(?:\.\d+)?(?:e[-+]?\d+)?)/i);  // numbers are at odd places
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a === b ? 0 : a - b;
    const mine = parts(a), theirs = parts(b);
    for (let i = 0; i < Math.min(mine.length, theirs.length); i++) {
      const order = i % 2 ? Number(mine[i]) - Number(theirs[i]) : mine[i].localeCompare(theirs[i], "en");
      if (order) return order;
    }
    return mine.length - theirs.length;
  };
  const key = (row, column) => {
    const cell = row.cells[column], value = cell.dataset.value;
    if (value === undefined) return cell.textContent;
    if (value === "-inf") return -Infinity;
    if (value === "inf") return Infinity;
    return value !== "" && Number.isFinite(Number(value)) ? Number(value) : value;
  };
  const sort = (table, column, direction) => {
    const body = table.tBodies[0], rows = [...body.rows];
    rows.sort((a, b) => direction * compare(key(a, column), key(b, column)));
    body.append(...rows);
    [...table.tHead.rows[0].cells].forEach((cell, i) => {
      if (i === column) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
  };
  document.querySelectorAll("table").forEach((table, number) => {
    const name = `dppo-sort ${location.pathname} ${number}`, before = /^(\d+) (-?1)$/.exec(stored("sessionStorage", name) || "");
    if (before && root.dataset.reloadS && Number(before[1]) < table.tHead.rows[0].cells.length) sort(table, Number(before[1]), Number(before[2]));
    [...table.tHead.rows[0].cells].forEach((cell, column) => cell.addEventListener("click", () => {
      const direction = cell.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      sort(table, column, direction);
      stored("sessionStorage", name, `${column} ${direction}`);
    }));
  });

  // -- values at the pointer
  const tip = document.getElementById("tip");
  const show = (event, lines) => {
    tip.textContent = lines.join("\n");
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${event.clientY + box.height + 24 < innerHeight ? event.clientY + 14 : Math.max(4, event.clientY - box.height - 10)}px`;
  };
  const places = new WeakMap();
  const parse = (path) => {  // [x, y, x, y, …] of the points of a path
    if (!places.has(path)) places.set(path, (path.getAttribute("d").match(/-?\d+(?:\.\d+)?,-?\d+(?:\.\d+)?/g) || []).map((p) => p.split(",").map(Number)));
    return places.get(path);
  };
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (points[middle][0] < x) low = middle; else high = middle; }
    return low < high && Math.abs(points[high][0] - x) < Math.abs(points[low][0] - x) ? high : low;
  };
  const between = (points, x) => {  // the nearest point or, far from all points, the line itself
    const i = nearest(points, x), j = i + (points[i][0] < x ? 1 : -1), [px, py] = points[i];
    if (Math.abs(px - x) <= 24 || j < 0 || j >= points.length) return points[i];
    const share = (x - px) / (points[j][0] - px);
    return [x, py + share * (points[j][1] - py)];
  };
  const text = (value, step) => {
    if (value !== 0 && Math.abs(value) < 1e-3 && step < 1e-4) return value.toPrecision(3);
    return value.toLocaleString("en", { maximumFractionDigits: Math.max(0, Math.min(8, Math.ceil(-Math.log10(step)))) });
  };
  document.querySelectorAll("svg.chart").forEach((chart) => {
    const numbers = (name) => chart.dataset[name].split(" ").map(Number);
    const [left, top, width, height] = numbers("frame"), [x0, x1] = numbers("x"), [y0, y1] = numbers("y");
    const valueX = (x) => "log" in chart.dataset ? Math.exp(Math.log(x0) + x / width * (Math.log(x1) - Math.log(x0))) : x0 + x / width * (x1 - x0);
    const valueY = (y) => y1 - y / height * (y1 - y0);
    const stepY = Math.abs(y1 - y0) / height / 20, stepX = Math.abs(x1 - x0) / width;
    chart.addEventListener("pointermove", (event) => {
      const told = event.target.closest("[data-tip]");
      if (told) return show(event, [told.dataset.tip]);
      const box = chart.getBoundingClientRect(), scale = chart.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale - left, y = (event.clientY - box.top) * scale - top;
      if (x < -4 || y < 0 || x > width + 4 || y > height) { tip.hidden = true; return; }
      const lines = [];
      let at = null;
      chart.querySelectorAll("[data-name]").forEach((path) => {
        const points = parse(path), name = path.dataset.name;
        if (!points.length) return;
        if (path.dataset.kind === "line") {
          const [px, py] = between(points, x);
          if (Math.abs(px - x) > 24) return;
          at = at === null || Math.abs(px - x) < Math.abs(at - x) ? px : at;
          lines.push(`${name}: ${text(valueY(py), stepY)}`);
        } else if (path.dataset.kind === "band" || path.dataset.kind === "layer") {
          const half = points.length / 2, i = nearest(points.slice(0, half), x), high = points[i][1], low = points[points.length - 1 - i][1];
          if (Math.abs(points[i][0] - x) > 24) return;
          at = at === null ? points[i][0] : at;
          lines.push(path.dataset.kind === "band" ? `${name}: ${text(valueY(low), stepY)} to ${text(valueY(high), stepY)}` : `${name}: ${text(valueY(high) - valueY(low), stepY)}`);
        } else {
          let best = null, distance = 64;
          for (const p of points) { const d = (p[0] - x) ** 2 + (p[1] - y) ** 2; if (d < distance) { distance = d; best = p; } }
          if (best) { lines.push(`${name}: ${text(valueY(best[1]), stepY)}`); at = at === null ? best[0] : at; }
        }
      });
      if (!lines.length) { tip.hidden = true; return; }
      show(event, [`${chart.dataset.xTitle}: ${text(valueX(at), stepX)}`, ...lines]);
    });
    chart.addEventListener("pointerleave", () => { tip.hidden = true; });
  });

  // -- a page that is renewed
  const reload = Number(root.dataset.reloadS);
  if (reload > 0) setTimeout(() => location.reload(), 1000 * reload);
})();
