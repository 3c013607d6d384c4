// An edit: what it did beside its controls, before and after, the weights that change, its gate, how it was measured, how to take it back.
page(/^edit\/(\d+)$/, (n) => {
  const edit = DATA.edits[Number(n)];
  if (!edit) return missing("This edit");
  const own = DATA.results.filter((r) =>
    r.edits.length
      ? r.edits.includes(edit.digest)
      : edit.concepts.includes(r.concept) && r.erasers.some((e) => e.split(" + ").includes(edit.eraser)),
  );
  const others = DATA.results.filter((r) => !own.includes(r) && edit.concepts.includes(r.concept)).length;
  const attacks = own.filter((r) => /attack/i.test(r.suite)),
    measured = own.filter((r) => !/attack/i.test(r.suite));
  return h(
    "div",
    {},
    heading(1, edit.name),
    DATA.edits.length > 1 &&
      choice(
        "Edit",
        DATA.edits.map((e, i) => [i, e.name]),
        n,
        (i) => {
          location.hash = link("edit", i);
        },
      ),
    facts([
      ["Takes out", edit.concepts.join(", ") || "no named concept"],
      ["By", edit.eraser],
      ["Made for", edit.host.name || "a host not named"],
      ["In force", edit.gate ? "for prompts at which its gate fires" : "for every prompt"],
    ]),
    measured.length
      ? measured.map((r) => evaluated(r))
      : section(
          "Before and after",
          note("No result of this edit is in this set. Measure it, then add --result OUT:"),
          command(edit.measure),
        ),
    attacks.length ? attacks.map((r) => evaluated(r, "Attacks tried")) : section("Attacks tried", note("None is in this set.")),
    others > 0 && note(`${others === 1 ? "One result" : others + " results"} of the same concept, measured with other edits, ${others === 1 ? "stands" : "stand"} under Compare.`),
    changes(edit),
    usedFeatures(edit),
    movedFeatures(edit),
    edit.gate &&
      section(
        "Gate",
        gateFacts(edit.gate),
        edit.gate.calibration && edit.gate.calibration.roc.length > 0 && rocChart([curve(edit.name, edit.gate)]),
      ),
    section("Take it back", edit.undo.startsWith("efface ") ? command(edit.undo) : h("p", {}, edit.undo)),
    section(
      "Parts and settings",
      edit.parts.map((p) => h("details", { class: "card" }, h("summary", {}, p.kind), facts(p.rows))),
      h(
        "details",
        { class: "card" },
        h("summary", {}, "Settings"),
        facts([...edit.config, ...edit.seeds, ["digest", edit.digest], ["folder", edit.folder]]),
      ),
      edit.cards.map((c) => h("details", { class: "card" }, h("summary", {}, "Protocol card stored with it"), facts(c))),
    ),
  );
});

function evaluated(r, title) {
  const table = r.table;
  return section(
    title || `Before, after and controls (${table.split})`,
    note(`${table.concept} on ${table.host}, ${table.suite}. In brackets: 95 % interval. ↑ higher is better, ↓ lower is better.`),
    !r.edits.length && note("This result does not say which edit it measured; it stands here by its eraser and concept."),
    r.edits.length > 1 && note(`Measured with ${r.edits.length} edits in force together.`),
    h("div", { class: "scroll" }, figuresTable(table)),
    r.absent.length > 0 && note("Not measured: " + r.absent.join("; ")),
    r.sheets.length > 0 && [
      heading(3, "Pictures before and after, same prompts and seeds"),
      [...r.sheets].sort((a, b) => ORDER_OF.indexOf(a.group) - ORDER_OF.indexOf(b.group)).map((s) =>
        h(
          "figure",
          {},
          h("figcaption", {}, GROUPS[s.group] || s.group),
          pair(
            ["before", "after"],
            [
              ["before", s.before],
              ["after", s.after],
            ].map(([how, src]) =>
              src
                ? h("img", { src, alt: `${GROUPS[s.group] || s.group}, ${how} the edit` })
                : note("too large for this file; it lies in sheets/"),
            ),
          ),
        ),
      ),
    ],
    r.samples.length > 0 && [
      heading(3, "Continuations before and after"),
      r.samples.map((s) =>
        h(
          "div",
          { class: "card sample" },
          h("p", {}, h("strong", {}, s.prompt), " ", s.about && h("span", { class: "badge" }, s.about)),
          pair(
            ["before", "after"],
            [s.before, s.after].map((t) => h("p", { class: "said" }, t)),
          ),
        ),
      ),
    ],
    h(
      "details",
      { class: "card" },
      h("summary", {}, "How it was measured"),
      note(`Protocol ${table.protocol.slice(0, 12)}. Figures of another protocol may not be set beside these.`),
      facts(table.card),
    ),
    r.commands.length > 0 && command(r.commands.join("\n")),
  );
}

const GROUPS = {
  target: "the concept by name",
  ways: "the concept in other words",
  neighbours: "its neighbours",
  general: "everything else",
};
const ORDER_OF = Object.keys(GROUPS);

// A metric a line, a row of the result a column: base, edited, controls.
function figuresTable(table) {
  const order = { base: 0, edited: 1, control: 2 };
  const shown = [...table.rows].sort((a, b) => order[a.kind] - order[b.kind]);
  const names = Object.keys(table.columns).filter((name) => shown.some((r) => r.metrics[name]));
  return h(
    "table",
    { class: "figures" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { scope: "col" }, "figure"),
        shown.map((r) =>
          h("th", { scope: "col", class: "num " + r.kind, "data-tip": r.note }, r.name, kindOf(r)),
        ),
      ),
    ),
    h(
      "tbody",
      {},
      names.map((name) => {
        const m = table.columns[name];
        return h(
          "tr",
          {},
          h("th", { scope: "row", "data-tip": m.about }, m.heading),
          shown.map((r) =>
            h(
              "td",
              { class: "num " + r.kind, "data-label": r.name === r.kind ? r.name : `${r.name} (${r.kind})` },
              r.metrics[name] ? valueCell(r.metrics[name], m) : "–",
            ),
          ),
        );
      }),
    ),
  );
}

function valueCell(v, m) {
  const spell = (x) => fixed(x * m.scale, m.digits);
  const count = `n = ${v.n}${v.unit ? " " + v.unit : ""}${v.method ? ", " + v.method : ""}`;
  return h(
    "span",
    { "data-tip": count },
    spell(v.mean),
    v.mark ? h("b", { class: "mark" }, " " + v.mark) : null,
    v.low !== null && (v.low !== v.mean || v.high !== v.mean) ? h("small", {}, `[${spell(v.low)}, ${spell(v.high)}]`) : null,
  );
}

function changes(edit) {
  if (!edit.changes.length) return section("Weights", note("It changes no weights; it acts while the model runs."));
  const layers = new Map();
  for (const c of edit.changes) {
    const name = c.layer === null ? c.tensor : "layer " + c.layer;
    layers.set(name, [...(layers.get(name) || []), c]);
  }
  const rows = [...layers].map(([name, found]) => ({
    name,
    value: Math.sqrt(found.reduce((s, c) => s + c.norm ** 2, 0)),
    tip: found.map((c) => `${c.tensor}: norm ${figure(c.norm)}${c.rank ? `, rank ${c.rank}` : ""}`).join("\n"),
  }));
  return section(
    "Weight change per layer",
    barChart(rows, "Frobenius norm of the change"),
    h(
      "details",
      {},
      h("summary", {}, `${edit.changes.length} tensors`),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              ["tensor", "norm", "rank"].map((t, i) => h("th", { scope: "col", class: i ? "num" : "" }, t)),
            ),
          ),
          h(
            "tbody",
            {},
            edit.changes.map((c) =>
              h("tr", {}, h("td", {}, c.tensor), h("td", { class: "num" }, figure(c.norm)), h("td", { class: "num" }, figure(c.rank))),
            ),
          ),
        ),
      ),
    ),
  );
}

// Features that the edit moves, whatever it is made of: mean peak in the texts that were read, before and after.
function movedFeatures(edit) {
  if (!edit.moved.length) return null;
  const line = (point, sae, [id, before, after]) =>
    h(
      "tr",
      {},
      h("td", {}, featureLink(sae, id, String(id)), " ", called(sae, id, labelOf(point, id))),
      [before, after].map((v) => h("td", { class: "num" }, figure(v))),
      h("td", { class: "num" }, (after > before ? "▲ " : "▼ ") + figure(Math.abs(after - before))),
    );
  return section(
    "Features that it moves",
    note("Mean of the largest activation in a text, over the prompts of this set, with the edit and without it."),
    edit.moved.map((m) => [
      heading(3, m.hook_point),
      note(`${m.unmoved.toLocaleString("en")} features are the same, to the bit, in all ${m.texts} prompts.`),
      m.features.length > 0 &&
        h(
          "div",
          { class: "scroll" },
          h(
            "table",
            {},
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                ["feature", "before", "after", "change"].map((t, i) => h("th", { scope: "col", class: i ? "num" : "" }, t)),
              ),
            ),
            h(
              "tbody",
              {},
              m.features.map((row) => line(m.hook_point, m.sae, row)),
            ),
          ),
        ),
    ]),
  );
}

const NAMED = { score: "Score", rho: "Ratio", auroc_train: "AUROC train", auroc_validation: "AUROC validation", auroc_test: "AUROC test" };

function usedFeatures(edit) {
  if (!edit.features.length) return null;
  const keys = [...new Set(edit.features.flatMap((f) => Object.keys(f)))].filter((k) => k !== "hook_point" && k !== "id");
  const columns = [
    { key: "id", title: "Feature", width: "5rem" },
    { key: "words", title: "Label", width: "minmax(8rem, 2fr)", small: "minmax(5rem, 1fr)", text: true },
    ...keys.map((k) => ({ key: k, title: NAMED[k] || k.replace(/_/g, " "), width: "8.4rem", wide: true })),
    { key: "hook_point", title: "Hook point", width: "minmax(7rem, 1fr)", text: true, wide: true },
  ];
  columns[0].show = (id, row) => featureLink(saeAt(row.hook_point), id, String(id));
  columns[1].show = (words, row) => called(saeAt(row.hook_point), row.id, words);
  const rows = edit.features.map((f) => [f.id, labelOf(f.hook_point, f.id), ...keys.map((k) => f[k] ?? null), f.hook_point]);
  const all = new VirtualTable({
    columns,
    source: new ListSource(
      columns.map((c) => c.key),
      rows,
    ),
    name: "Features of the edit",
    height: 330,
    href: (row) => (isShown(saeAt(row.hook_point), row.id) ? link("sae", saeAt(row.hook_point), "f", row.id) : null),
  });
  return section("Features that it uses", all.node);
}
