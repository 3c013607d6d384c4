// Charts as SVG, drawn at the width that there is, so that their words keep their size; each says in words what it shows.
function responsive(draw, alt) {
  const box = h("div", { class: "chart", role: "img", "aria-label": alt });
  const again = () => {
    if (box.clientWidth) box.replaceChildren(draw(Math.min(box.clientWidth, 900)));
  };
  const watch = new ResizeObserver(again);
  watch.observe(box);
  onLeave(() => watch.disconnect());
  return box;
}

const scale = (low, high, from, to) => (v) => from + ((v - low) / (high - low || 1)) * (to - from);

function ticks(low, high, n) {
  const step = Math.pow(10, Math.floor(Math.log10((high - low || 1) / n)));
  const nice = [1, 2, 5, 10].map((m) => m * step).find((s) => (high - low) / s <= n) || step * 10;
  const found = [];
  for (let v = Math.ceil(low / nice) * nice; v <= high + nice / 1e6; v += nice) found.push(Math.abs(v) < nice / 1e6 ? 0 : v);
  return found;
}

function frame(width, height, left, bottom) {
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    svg("line", { class: "axis", x1: left, y1: height - bottom, x2: width - 6, y2: height - bottom }),
  );
}

const word = (x, y, text, anchor = "middle", cls = "") => svg("text", { x, y, "text-anchor": anchor, class: cls }, text);

// bars: [{low, high, n, tip}] on any axis; label(v) spells an edge
function histogram(bars, { axis, label, unit = "features", log = false }) {
  const total = bars.reduce((sum, b) => sum + b.n, 0);
  const most = Math.max(1, ...bars.map((b) => b.n));
  const alt = `Histogram of ${axis}: ${total.toLocaleString("en")} ${unit}, from ${label(bars[0].low)} to ${label(bars[bars.length - 1].high)}`;
  return responsive((width) => {
    const height = 170,
      left = 8,
      bottom = 36;
    const out = frame(width, height, left, bottom);
    const x = scale(0, bars.length, left, width - 8);
    const grown = (n) => (log ? Math.log1p(n) : n);
    const y = scale(0, grown(most), height - bottom, 16);
    bars.forEach((b, i) => {
      const top = b.n ? Math.min(y(grown(b.n)), height - bottom - 1.5) : height - bottom;
      out.append(
        svg("rect", { class: "bar", x: x(i) + 0.5, y: top, width: Math.max(0.5, x(i + 1) - x(i) - 1), height: height - bottom - top }),
        svg("rect", {
          class: "hit",
          x: x(i),
          y: 0,
          width: x(i + 1) - x(i),
          height: height - bottom,
          "data-tip": `${label(b.low)} to ${label(b.high)}: ${b.n.toLocaleString("en")} ${unit}`,
        }),
      );
    });
    const every = Math.max(1, Math.ceil(bars.length / Math.max(2, Math.floor(width / 95))));
    for (let i = 0; i <= bars.length; i += every) {
      out.append(
        word(
          x(i),
          height - bottom + 14,
          label(i < bars.length ? bars[i].low : bars[i - 1].high),
          i === 0 ? "start" : i === bars.length ? "end" : "middle",
        ),
      );
    }
    out.append(
      word(width / 2, height - 5, axis, "middle", "name"),
      word(left, 12, `${log ? "log of the " : ""}number of ${unit}`, "start", "name"),
    );
    return out;
  }, alt);
}

// One or several ROC curves: [{name, roc: [[fpr, tpr]], at: {x: rate, y: rate}}], rates with intervals
function rocChart(curves) {
  const alt =
    "ROC: " +
    curves
      .map(
        (c) =>
          `${c.name}${c.at ? `, at the threshold ${percent(c.at.x.mean)} of the pool and ${percent(c.at.y && c.at.y.mean)} of the targets fire` : ""}`,
      )
      .join("; ");
  return responsive((width) => {
    const side = Math.min(width, 380),
      left = 58,
      bottom = 38;
    const out = svg("svg", { viewBox: `0 0 ${side} ${side}`, width: side, height: side, "aria-hidden": "true" });
    const x = scale(0, 1, left, side - 8),
      y = scale(0, 1, side - bottom, 8);
    for (const t of [0, 0.25, 0.5, 0.75, 1]) {
      out.append(
        svg("line", { class: "grid", x1: x(t), x2: x(t), y1: y(0), y2: y(1) }),
        svg("line", { class: "grid", x1: x(0), x2: x(1), y1: y(t), y2: y(t) }),
      );
      out.append(word(x(t), side - bottom + 15, String(t)), word(left - 6, y(t) + 4, String(t), "end"));
    }
    out.append(svg("line", { class: "chance", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
    curves.forEach((c, i) => {
      if (c.roc.length)
        out.append(
          svg("polyline", {
            class: "curve",
            stroke: HUES[i],
            "stroke-dasharray": i ? "7 4" : null,
            points: c.roc.map(([a, b]) => `${x(a)},${y(b)}`).join(" "),
          }),
        );
      if (c.at && c.at.y) {
        const cross = (a, b) => svg("line", { class: "whisker", stroke: HUES[i], x1: a[0], y1: a[1], x2: b[0], y2: b[1] });
        const px = x(c.at.x.mean),
          py = y(c.at.y.mean);
        out.append(
          cross([x(c.at.x.low), py], [x(c.at.x.high), py]),
          cross([px, y(c.at.y.low)], [px, y(c.at.y.high)]),
          svg("circle", {
            class: "point",
            cx: px,
            cy: py,
            r: 6,
            fill: HUES[i],
            "data-tip": `${c.name}: threshold ${figure(c.at.threshold)}; pool ${percent(c.at.x.mean)} [${percent(c.at.x.low)}, ${percent(c.at.x.high)}], targets ${percent(c.at.y.mean)} [${percent(c.at.y.low)}, ${percent(c.at.y.high)}]`,
          }),
        );
      }
    });
    out.append(
      word((x(0) + x(1)) / 2, side - 6, "share of the general pool that fires", "middle", "name"),
      svg(
        "text",
        { class: "name", "text-anchor": "middle", transform: `translate(11 ${(y(0) + y(1)) / 2}) rotate(-90)` },
        "share of the targets that fires",
      ),
    );
    return out;
  }, alt);
}

// Horizontal bars: [{name, value, tip}]
function barChart(rows, axis) {
  const most = Math.max(...rows.map((r) => r.value), 1e-12);
  return responsive(
    (width) => {
      const left = Math.min(150, width * 0.35),
        line = 20,
        height = rows.length * line + 26;
      const out = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
      const x = scale(0, most, left, width - 60);
      rows.forEach((r, i) => {
        out.append(
          word(left - 6, i * line + 15, r.name, "end"),
          svg("rect", {
            class: "bar",
            x: left,
            y: i * line + 4,
            width: Math.max(1, x(r.value) - left),
            height: line - 6,
            "data-tip": r.tip,
          }),
          word(x(r.value) + 4, i * line + 15, figure(r.value), "start"),
        );
      });
      out.append(word(left, height - 6, axis, "start", "name"));
      return out;
    },
    `${axis}: ` + rows.map((r) => `${r.name} ${figure(r.value)}`).join(", "),
  );
}

// Points with whiskers: [{name, kind, x: value, y: value}]; values {mean, low, high}; front: names on the front, in order
function scatter(points, { xName, yName, front }) {
  const ends = (axis) => {
    const all = points.flatMap((p) => [p[axis].low ?? p[axis].mean, p[axis].high ?? p[axis].mean]);
    const low = Math.min(...all),
      high = Math.max(...all),
      pad = (high - low || Math.abs(high) || 1) * 0.08;
    return [low - pad, high + pad];
  };
  const alt =
    `${yName} against ${xName}: ` + points.map((p) => `${p.name} (${p.kind}) ${figure(p.x.mean)}, ${figure(p.y.mean)}`).join("; ");
  return responsive((width) => {
    const height = Math.min(420, Math.max(260, width * 0.6)),
      left = 70,
      bottom = 42;
    const out = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    const [x0, x1] = ends("x"),
      [y0, y1] = ends("y");
    const x = scale(x0, x1, left, width - 14),
      y = scale(y0, y1, height - bottom, 12);
    for (const t of ticks(x0, x1, width < 420 ? 4 : 7))
      out.append(svg("line", { class: "grid", x1: x(t), x2: x(t), y1: y(y0), y2: y(y1) }), word(x(t), height - bottom + 16, figure(t)));
    for (const t of ticks(y0, y1, 6))
      out.append(svg("line", { class: "grid", x1: x(x0), x2: x(x1), y1: y(t), y2: y(t) }), word(left - 6, y(t) + 4, figure(t), "end"));
    if (front.length > 1)
      out.append(svg("polyline", { class: "front", points: front.map((p) => `${x(p.x.mean)},${y(p.y.mean)}`).join(" ") }));
    const last = (p) => (p.kind === "edited" ? 1 : 0); // edited rows lie above what they hide
    const order = points.map((p, i) => [p, i]).sort(([a], [b]) => last(a) - last(b));
    order.forEach(([p, i]) => {
      const hue = p.kind === "edited" ? HUES[i % HUES.length] : "var(--soft)",
        px = x(p.x.mean),
        py = y(p.y.mean);
      if (p.x.low !== null && p.x.low !== undefined)
        out.append(svg("line", { class: "whisker", stroke: hue, x1: x(p.x.low), x2: x(p.x.high), y1: py, y2: py }));
      if (p.y.low !== null && p.y.low !== undefined)
        out.append(svg("line", { class: "whisker", stroke: hue, x1: px, x2: px, y1: y(p.y.low), y2: y(p.y.high) }));
      out.append(
        marker(
          p.kind === "edited" ? i : p.kind === "base" ? "base" : "control",
          px,
          py,
          hue,
          `${p.name} (${p.kind}): ${xName} ${interval(p.x)}, ${yName} ${interval(p.y)}`,
        ),
      );
    });
    const taken = points.map((p) => [x(p.x.mean) - 7, y(p.y.mean) - 7, 14, 14]);
    for (const [p] of order.reverse()) {
      const at = freePlace(taken, x(p.x.mean), y(p.y.mean), p.name.length * (p.kind === "edited" ? 7.4 : 6.6), width, height - bottom);
      if (at) out.append(word(at[0], at[1] + 11, p.name, "start", p.kind));
    }
    out.append(
      word((left + width) / 2, height - 6, xName, "middle", "name"),
      svg("text", { class: "name", "text-anchor": "middle", transform: `translate(12 ${(height - bottom) / 2}) rotate(-90)` }, yName),
    );
    return out;
  }, alt);
}

// Where the name of a point hides no other name and no point, if anywhere; what has no room says its name when it is pointed at.
function freePlace(taken, px, py, long, width, height) {
  const tried = [0, 1, -1, 2, -2].flatMap((k) => [
    [px + 10, py - 20 + 15 * k],
    [px - 10 - long, py - 20 + 15 * k],
  ]);
  const hits = ([a, b]) => taken.some(([c, d, w, t]) => a < c + w && c < a + long && b < d + t && d < b + 14);
  const at = tried.find(([a, b]) => a >= 2 && a + long <= width - 2 && b >= 0 && b + 14 <= height && !hits([a, b]));
  if (at) taken.push([at[0], at[1], long, 14]);
  return at;
}

const interval = (v) => figure(v.mean) + (v.low === null || v.low === undefined ? "" : ` [${figure(v.low)}, ${figure(v.high)}]`);

function marker(kind, x, y, hue, words) {
  const shapes = [
    `M ${x - 6} ${y} a 6 6 0 1 0 12 0 a 6 6 0 1 0 -12 0`,
    `M ${x - 6} ${y - 6} h 12 v 12 h -12 z`,
    `M ${x} ${y - 7} l 7 13 h -14 z`,
    `M ${x} ${y - 8} l 7 8 l -7 8 l -7 -8 z`,
    `M ${x} ${y + 7} l 7 -13 h -14 z`,
  ];
  const hollow = kind === "base" || kind === "control";
  const d = kind === "base" ? shapes[0] : kind === "control" ? shapes[1] : shapes[kind % shapes.length];
  return svg("path", {
    d,
    class: hollow ? "point hollow" : "point",
    fill: hollow ? "var(--bg)" : hue,
    stroke: hollow ? hue : "var(--bg)",
    "data-tip": words,
  });
}
