// One SAE: its card, how often its features fire, the map, and the table of all of them.
const COLUMNS = {
  id: { title: "Feature", width: "5rem", small: "4.4rem", about: "Its number in the SAE" },
  label: {
    title: "Label",
    width: "minmax(9rem, 3fr)",
    small: "minmax(6rem, 1fr)",
    text: true,
    about: "Words that its contexts share; unlabelled where none detects it",
  },
  auroc: {
    title: "Detection",
    width: "6.4rem",
    small: "5.6rem",
    show: score,
    about: "AUROC of the label on held-out test contexts: firing against silent",
  },
  fuzzing: {
    title: "Fuzzing",
    width: "5.6rem",
    wide: true,
    show: score,
    about: "AUROC of the label on marked tokens of held-out test contexts: rightly against wrongly marked",
  },
  density: { title: "Density", width: "5rem", wide: true, about: "Share of tokens on which it fires" },
  max: { title: "Max", width: "4.2rem", wide: true, about: "Largest activation" },
  mean: { title: "Mean", width: "4.4rem", wide: true, far: true, about: "Mean activation where it fires" },
  fired: { title: "Fired", width: "4.6rem", wide: true, about: "Tokens on which it fires" },
  windows: { title: "Windows", width: "5.4rem", wide: true, far: true, about: "Stretches of text in which it fires" },
  auroc_low: { title: "Det. low", width: "5rem", wide: true, far: true, show: score, about: "Lower end of the detection AUROC's 95 % interval" },
  auroc_high: { title: "Det. high", width: "5.4rem", wide: true, far: true, show: score, about: "Upper end of the detection AUROC's 95 % interval" },
  validation: {
    title: "Validation",
    width: "6rem",
    wide: true,
    far: true,
    show: score,
    about: "The label's AUROC on validation, which decided whether it stands",
  },
  status: { title: "Status", width: "6.6rem", wide: true, far: true, text: true, unsorted: true },
};
const ORDER = ["id", "label", "auroc", "fuzzing", "density", "max", "mean", "fired", "windows", "auroc_low", "auroc_high", "validation", "status"];
const STATUSES = ["labelled", "at chance", "too few contexts", "no word", "silent"];

page(/^(?:sae\/(\d+))?$/, (n) => overview(Number(n || 0)));

function overview(sae) {
  const about = DATA.saes[sae];
  if (!about)
    return DATA.saes.length || !(DATA.edits.length || DATA.tables.length || DATA.concepts.length) ? missing("This SAE") : elsewhere();
  const evidence = about.store;
  return h(
    "div",
    {},
    heading(1, DATA.title),
    DATA.saes.length > 1 &&
      choice(
        "SAE",
        DATA.saes.map((s, i) => [i, s.name]),
        sae,
        (i) => {
          location.hash = link("sae", i);
        },
      ),
    DATA.notes.map((n) => note(n)),
    beginning(),
    evidence && trust(evidence.labels),
    evidence
      ? h("div", {}, table(sae, about), h("div", { class: "columns" }, density(evidence.density), mapOf(sae, about)))
      : section(
          "No evidence yet",
          note("What its features fire on has not been read. Collect it, then look again:"),
          command(`efface features --sae ${about.folder} --all`),
        ),
    card(about),
  );
}

// What is seen here, for whoever opens the page without knowing; and where the rest is.
function beginning() {
  const rest = [
    DATA.concepts.length && ["which of them carry ", h("a", { href: link("concept", 0) }, "the concept")],
    DATA.edits.length && ["what ", h("a", { href: link("edit", 0) }, "the edit"), " changed, and what was measured"],
  ].filter(Boolean);
  return note(
    "A feature is one of the directions into which a sparse autoencoder takes the model's states apart. Its label is a guess from the words on which it fires; detection says how well the guess finds them (.5: a coin, 1: always).",
    rest.length > 0 && [" Also here: ", rest.map((part, i) => [i ? "; " : "", ...part]), "."],
  );
}

function elsewhere() {
  const to = DATA.edits.length ? link("edit", 0) : DATA.concepts.length ? link("concept", 0) : link("compare");
  return h("div", {}, heading(1, DATA.title), note("No SAE stands in this set. ", h("a", { href: to }, "See what does")));
}

function table(sae, about) {
  const columns = ORDER.filter((key) => about.columns.includes(key)).map((key) => ({ key, ...COLUMNS[key] }));
  const at = Object.fromEntries(columns.map((c) => [c.key, c]));
  at.id.show = (id) => h("a", { href: link("sae", sae, "f", id) }, String(id));
  at.label.show = (label, row) =>
    h("span", { class: row.status === "labelled" ? "" : "soft", title: label }, row.status === "labelled" ? label : row.status);
  const all = new VirtualTable({
    columns,
    source: rowsOf(sae),
    sort: "auroc",
    href: (row) => link("sae", sae, "f", row.id),
    name: "Features",
  });
  const shown = about.rows ? about.rows.length : about.store.total;
  return section(
    "Features",
    shown < about.store.total &&
      note(
        `${shown.toLocaleString("en")} of ${about.store.total.toLocaleString("en")} features stand in this file: those that concepts, edits and prompts name, then those with the best labels. `,
        "efface serve shows all.",
      ),
    controls(all, {
      placeholder: "a label, or the beginning of a token",
      modes: [
        ["label", "labels and tokens"],
        ["context", "text of contexts"],
      ],
      statuses: STATUSES,
      bounds: columns.filter((c) => !c.text && c.key !== "id"),
    }),
    all.node,
  );
}

// What the labels are worth: their median scores beside those of the same labels dealt to other features.
function trust(labels) {
  const own = labels.labelled;
  if (!own || own.median === undefined || own.median === null) return null;
  const beside = (name) => {
    const other = labels[name];
    return other && other.median !== null && other.median !== undefined ? ` (shuffled labels: ${figure(other.median)})` : "";
  };
  const of = Object.values(labels.status || {}).reduce((a, b) => a + b, 0);
  return h(
    "p",
    { class: "trust" },
    h("strong", {}, figure(own.n)),
    of ? ` of ${figure(of)} features have a label that detects them better than chance. ` : " labels. ",
    "Median AUROC on held-out contexts: detection ",
    h("strong", {}, figure(own.median)),
    beside("labelled, shuffled"),
    labels.fuzzing && labels.fuzzing.median !== null && labels.fuzzing.median !== undefined
      ? [", fuzzing ", h("strong", {}, figure(labels.fuzzing.median)), beside("fuzzing, shuffled")]
      : null,
    ".",
  );
}

function density(found) {
  if (!found.counts.length) return section("How often features fire", note("No feature fires on the corpus."));
  const bars = found.counts.map((n, i) => ({ low: found.edges[i], high: found.edges[i + 1], n }));
  const spell = (e) => {
    const v = Math.pow(10, e);
    return (v >= 0.01 ? figure(100 * v, 2) : String(Number((100 * v).toPrecision(1)))) + " %";
  };
  return section(
    "How often features fire",
    histogram(bars, { axis: "share of tokens (log scale)", label: spell }),
    note(`${found.silent.toLocaleString("en")} features never fire on the corpus.`),
  );
}

function mapOf(sae, about) {
  const box = h("div", { class: "mapbox" });
  const put = (found) => {
    const made = featureMap(sae, found, (id) => {
      location.hash = link("sae", sae, "f", id);
    });
    const labels = new Map((about.rows || []).map((r) => [r[0], r[1]]));
    made.named((id, i) => `feature ${id}: ${labels.get(id) || found.groups[found.group[i]]}`);
    box.replaceChildren(made.node);
  };
  if (about.map) put(about.map);
  else if (LIVE) {
    const button = h("button", { type: "button", onclick: () => draw() }, "Draw the map");
    const draw = async () => {
      box.replaceChildren(note("The map is computed; the first time this takes a while."));
      try {
        put(await ask("/api/map", { sae }));
      } catch (e) {
        box.replaceChildren(h("p", { class: "error", role: "alert" }, e.message));
      }
    };
    box.append(button);
    if (about.d_sae <= 4096) draw();
  } else box.append(note("This file holds no map."));
  return section(
    "Map of features",
    note("Near: alike in what they write (decoder rows, t-SNE). Far apart says little. Colour and shape: first word of the label."),
    box,
  );
}

function card(about) {
  const evidence = about.store;
  const labels = evidence
    ? Object.entries(evidence.labels).map(([name, r]) => [
        name,
        Object.entries(r)
          .map(([k, v]) => `${k} ${figure(v)}`)
          .join(", "),
      ])
    : [];
  const blocks = [...about.card, ["Corpus of the evidence", evidence ? evidence.corpus : []], ["Labels", labels]].filter(
    ([, rows]) => rows.length,
  );
  return section(
    "Card",
    h(
      "div",
      { class: "cards" },
      blocks.map(([name, rows], i) => h("details", { open: i < 2, class: "card" }, h("summary", {}, name), facts(rows))),
    ),
  );
}
