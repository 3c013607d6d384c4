// Results of one protocol beside each other: erasers by metrics with intervals, sortable; and erasure against retention.
page(/^compare(?:\/(\d+))?$/, (n) => {
  const t = DATA.tables[Number(n || 0)];
  if (!t) return missing("This table");
  return h(
    "div",
    {},
    heading(1, `${t.concept} on ${t.host}`),
    DATA.tables.length > 1 &&
      choice(
        "Protocol",
        DATA.tables.map((x, i) => [i, `${x.concept} on ${x.host}, ${x.suite}, ${x.split}, ${x.protocol.slice(0, 8)}`]),
        n || 0,
        (i) => {
          location.hash = link("compare", i);
        },
        "long",
      ),
    note(
      `${t.suite}, split ${t.split}${t.split === "test" ? `, looks at test so far: ${t.looks}` : ""}. Tables hold figures of one protocol alone.`,
    ),
    !/attack/i.test(t.suite) && section("Erasure against retention", pareto(t)),
    section(
      "All figures",
      note("* best edited row, = tied with the best (intervals overlap), – not measured. ↑ higher is better, ↓ lower is better."),
      sortable(t),
    ),
    h("details", { class: "card" }, h("summary", {}, "How it was measured"), facts(t.card)),
  );
});

const kindOf = (r) => (r.name === r.kind ? null : [" ", h("span", { class: "badge" }, r.kind)]);
// A row by its name, and by the result that it stands in where several rows have that name.
const rowName = (t, r) => (t.rows.filter((o) => o.name === r.name).length > 1 && r.result !== r.name ? `${r.name} (${r.result})` : r.name);

function sortable(t) {
  const names = Object.keys(t.columns);
  const body = h("tbody", {});
  let sorted = null,
    desc = true;
  const heads = names.map((name) =>
    h(
      "th",
      { scope: "col", class: "num" },
      h(
        "button",
        { type: "button", "data-metric": name, "data-tip": t.columns[name].about, onclick: () => by(name) },
        t.columns[name].heading,
      ),
    ),
  );
  const order = choice("Sorted by", [["", "as given"], ...names.map((n) => [n, t.columns[n].heading])], "", (name) => by(name || null));
  function by(name) {
    order.querySelector("select").value = name || "";
    desc = name !== null && (sorted === name ? !desc : t.columns[name].better !== "lower");
    sorted = name;
    draw();
  }
  function draw() {
    heads.forEach((th, i) => {
      if (names[i] === sorted) th.setAttribute("aria-sort", desc ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    const rows = [...t.rows];
    if (sorted) {
      const v = (r) => (r.metrics[sorted] ? r.metrics[sorted].mean : null);
      rows.sort((a, b) => (v(a) === null || v(b) === null ? (v(a) === null) - (v(b) === null) : desc ? v(b) - v(a) : v(a) - v(b)));
    }
    body.replaceChildren(
      ...rows.map((r) =>
        h(
          "tr",
          { class: r.kind },
          h("th", { scope: "row", "data-tip": r.note }, rowName(t, r), kindOf(r)),
          names.map((name) =>
            h(
              "td",
              { class: "num", "data-label": t.columns[name].heading },
              r.metrics[name] ? valueCell(r.metrics[name], t.columns[name]) : "–",
            ),
          ),
        ),
      ),
    );
  }
  draw();
  const head = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "row"), heads));
  return [order, h("div", { class: "scroll" }, h("table", { class: "figures rows" }, head, body))];
}

const ERASURE = ["efficacy_unseen", "efficacy", "UA_held_out", "UA", "margin", "union"];
const RETENTION = ["specificity", "kept", "IRA_rel", "IRA_nb", "neighbours_margin", "coherence", "perplexity"];

function pareto(t) {
  const names = Object.keys(t.columns).filter((n) => t.rows.filter((r) => r.metrics[n]).length > 1);
  if (names.length < 2) return note("Two figures that several rows have are needed for a plot.");
  const first = (wanted, but) => wanted.find((n) => names.includes(n) && n !== but) || names.find((n) => n !== but);
  let y = first(ERASURE),
    x = first(RETENTION, y);
  const box = h("div", {});
  const options = names.map((n) => [n, t.columns[n].heading]);
  function draw() {
    const points = t.rows
      .filter((r) => r.metrics[x] && r.metrics[y])
      .map((r) => ({ name: rowName(t, r), kind: r.kind, x: scaled(r.metrics[x], t.columns[x]), y: scaled(r.metrics[y], t.columns[y]) }));
    if (!points.length) {
      box.replaceChildren(note("No row has both."));
      return;
    }
    const sx = sign(t.columns[x]),
      sy = sign(t.columns[y]);
    const where = [sy && (sy > 0 ? "up" : "down"), sx && (sx > 0 ? "to the right" : "to the left")].filter(Boolean);
    box.replaceChildren(
      scatter(points, { xName: t.columns[x].heading, yName: t.columns[y].heading, front: sx && sy ? frontOf(points, sx, sy) : [] }),
      where.length ? note(`Better: ${where.join(" and ")}.`) : "",
    );
  }
  draw();
  return [
    h(
      "div",
      { class: "line" },
      choice("Erasure (upright axis)", options, y, (v) => {
        y = v;
        draw();
      }),
      choice("Retention (level axis)", options, x, (v) => {
        x = v;
        draw();
      }),
    ),
    box,
    note(
      "Filled: edited rows; hollow circle: base; hollow square: controls. Whiskers: 95 % intervals. The line joins edited rows that no other edited row beats in both.",
    ),
  ];
}

const sign = (m) => ({ lower: -1, higher: 1 })[m.better] || 0;
const scaled = (v, m) => {
  const ends = v.low === null || v.low === undefined ? [null, null] : [v.low * m.scale, v.high * m.scale].sort((a, b) => a - b);
  return { mean: v.mean * m.scale, low: ends[0], high: ends[1] };
};

function frontOf(points, sx, sy) {
  const edited = points.filter((p) => p.kind === "edited");
  const beats = (a, b) =>
    sx * a.x.mean >= sx * b.x.mean && sy * a.y.mean >= sy * b.y.mean && (a.x.mean !== b.x.mean || a.y.mean !== b.y.mean);
  return edited.filter((p) => !edited.some((q) => beats(q, p))).sort((a, b) => a.x.mean - b.x.mean);
}
