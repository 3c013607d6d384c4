// A gate: what it listens to, where it fires, its curve with the threshold and the intervals of both rates.
function gateOf(c) {
  if (!c.gate) return section("Gate", note(c.no_gate || "none"));
  return section(
    "Gate",
    gateFacts(c.gate),
    c.test &&
      h(
        "details",
        {},
        h("summary", {}, "On test, which it was not made with"),
        facts(Object.entries(c.test).map(([k, v]) => [k, v && typeof v === "object" ? rateText(v) : figure(v)])),
      ),
  );
}

function rateText(v) {
  const rate = v.rate !== undefined || v.mean !== undefined;
  const mean = v.rate ?? v.auroc ?? v.mean,
    spell = rate && v.auroc === undefined ? percent : figure;
  return `${spell(mean)} [${spell(v.low)}, ${spell(v.high)}]${v.n ? ` of ${figure(v.n)}` : ""}`;
}

function gateFacts(gate) {
  const c = gate.calibration;
  const rows = [["Decides", `per ${gate.per}, reading at ${gate.hook_points.join(", ")}`]];
  if (c) {
    rows.push(["Fires at", `score ≥ ${figure(c.threshold)} (asked for: at most ${percent(c.fpr)} of the general pool)`]);
    for (const [k, words] of [
      ["pool", "General pool that fires"],
      ["target", "Targets that fire"],
      ["neighbours", "Neighbours that fire"],
    ])
      if (c[k]) rows.push([words, rateText(c[k])]);
    for (const [k, words] of [
      ["auroc_pool", "AUROC against the pool"],
      ["auroc_neighbours", "AUROC against neighbours"],
    ])
      if (c[k]) rows.push([words, `${figure(c[k].mean)} [${figure(c[k].low)}, ${figure(c[k].high)}]`]);
    if (c.note) rows.push(["Mind", c.note]);
  } else rows.push(["Threshold", "none yet: it was not calibrated"]);
  const heard = gate.sources
    .flatMap((s) => s.features.map((f, i) => [s.hook_point, f, s.weights[i]]))
    .sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]));
  return [
    facts(rows),
    heard.length > 0 &&
      h(
        "details",
        {},
        h("summary", {}, `Listens to ${heard.length} ${heard.length === 1 ? "feature" : "features"}`),
        h(
          "ul",
          { class: "plain near" },
          heard.map(([point, f, w]) =>
            h(
              "li",
              {},
              featureLink(saeAt(point), f),
              h("span", { class: "soft" }, ` at ${point}, weight ${figure(w)} `),
              labelOf(point, f),
            ),
          ),
        ),
      ),
  ];
}

// What a feature is called that a concept, an edit, a gate or a prompt names.
function labelOf(point, id) {
  return (DATA.labels[point] || {})[id] || "";
}

function curvesOf(concepts) {
  const curves = concepts.filter((c) => c.gate && c.gate.calibration && c.gate.calibration.roc.length).map((c) => curve(c.name, c.gate));
  return curves.length
    ? section(
        "Curve of the gate",
        rocChart(curves),
        legendOf(curves.map((c) => c.name)),
        note("On validation. The point is the chosen threshold; its whiskers are 95 % intervals of both rates."),
      )
    : null;
}

const curve = (name, gate) => ({
  name,
  roc: gate.calibration.roc,
  at: gate.calibration.target ? { threshold: gate.calibration.threshold, x: gate.calibration.pool, y: gate.calibration.target } : null,
});

function legendOf(names) {
  return names.length > 1
    ? h(
        "p",
        { class: "legend" },
        names.map((n, i) =>
          h(
            "span",
            {},
            svg(
              "svg",
              { width: 26, height: 10, "aria-hidden": "true" },
              svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: HUES[i], "stroke-width": 3, "stroke-dasharray": i ? "7 4" : null }),
            ),
            " ",
            n,
            " ",
          ),
        ),
      )
    : null;
}
