// One feature: label and score, activations, contexts with coloured tokens, tokens it promotes, neighbours, where it takes part, pictures.
page(/^sae\/(\d+)\/f\/(\d+)$/, (n, id) => {
  const sae = Number(n),
    number = Number(id);
  if (!DATA.saes[sae]) return missing("This SAE");
  const box = h("div", { "aria-busy": "true" }, heading(1, "Feature " + number), note("Reading…"));
  featureOf(sae, number)
    .then(
      (found) => {
        box.replaceChildren(...(found ? featurePage(sae, number, found) : [missing("Feature " + number)]));
      },
      (error) => {
        box.replaceChildren(heading(1, "Feature " + number), h("p", { class: "error", role: "alert" }, error.message));
      },
    )
    .finally(() => {
      box.removeAttribute("aria-busy");
      document.dispatchEvent(new CustomEvent("featured"));
    });
  return box;
});

function featurePage(sae, number, f) {
  const r = f.row,
    about = DATA.saes[sae];
  return [
    h("p", { class: "crumb" }, h("a", { href: link("sae", sae) }, about.name), " / feature " + number),
    heading(1, r.status === "labelled" ? r.label : "Feature " + number),
    h("p", {}, badge(r), r.status !== "labelled" && f.proposal ? h("span", { class: "soft" }, ` proposed: ${f.proposal}`) : null),
    facts([
      ["Feature", String(number)],
      ["Fires on", `${percent(r.density)} of tokens (${figure(r.fired)}, in ${figure(r.windows)} windows)`],
      ["Activation", `at most ${figure(r.max)}, on average ${figure(r.mean)} where it fires`],
      ...(f.source ? [[r.status === "labelled" ? "Label made from" : "Proposal made from", f.source]] : []),
    ]),
    partsOf(sae, number),
    picturesOf(sae, number, f),
    f.histogram.length
      ? section(
          "Activations",
          histogram(
            f.histogram.map(([low, high, n]) => ({ low, high, n })),
            { axis: "activation (a quarter octave a bar)", label: (v) => figure(v, 2), unit: "tokens" },
          ),
        )
      : null,
    contexts(f),
    tokensOf(f),
    neighbours(sae, f),
  ].filter(Boolean);
}

function badge(r) {
  if (r.status === "labelled") {
    return [
      h(
        "span",
        { class: "badge good", "data-tip": "AUROC of the label as a detector on held-out contexts, with its 95 % interval" },
        `detects: AUROC ${figure(r.auroc)} [${figure(r.auroc_low)}, ${figure(r.auroc_high)}]`,
      ),
      " ",
      r.fuzzing !== null &&
        r.fuzzing !== undefined &&
        h(
          "span",
          { class: "badge", "data-tip": "AUROC of the label on marked tokens: are the right ones marked? At chance where it speaks of the surroundings" },
          `fuzzing: AUROC ${figure(r.fuzzing)}`,
        ),
    ];
  }
  return h("span", { class: "badge" }, `unlabelled: ${r.status}`);
}

function partsOf(sae, number) {
  const point = DATA.saes[sae].hook_point;
  const rows = [];
  DATA.concepts.forEach((c, i) => {
    const rank = c.report.features.findIndex((f) => f.id === number && f.hook_point === point);
    const weight = weightIn(c.gate, point, number);
    if (rank < 0 && weight === null) return;
    const auroc = rank >= 0 ? c.report.features[rank].auroc : {};
    rows.push(
      h(
        "li",
        {},
        h("a", { href: link("concept", i) }, c.name),
        rank >= 0
          ? `: rank ${rank + 1}, AUROC on validation ${figure(auroc.validation)}${auroc.test === null || auroc.test === undefined ? "" : ", on test " + figure(auroc.test)}`
          : "",
        weight === null ? "" : `; weight in its gate ${figure(weight)}`,
      ),
    );
  });
  DATA.edits.forEach((e, i) => {
    const used = e.features.some((f) => f.id === number && f.hook_point === point);
    const weight = weightIn(e.gate, point, number);
    if (used || weight !== null)
      rows.push(
        h(
          "li",
          {},
          h("a", { href: link("edit", i) }, e.name),
          used ? ": changed by this edit" : "",
          weight === null ? "" : `; weight in its gate ${figure(weight)}`,
        ),
      );
  });
  return rows.length ? section("Takes part in", h("ul", {}, rows)) : null;
}

function weightIn(gate, point, number) {
  for (const s of (gate && gate.sources) || [])
    if (s.hook_point === point && s.features.includes(number)) return s.weights[s.features.indexOf(number)];
  return null;
}

function contexts(f) {
  const groups = [["top", null, "Strongest"]];
  const quantiles = [...new Set(f.contexts.filter((c) => c.kind === "quantile").map((c) => c.quantile))].sort((a, b) => b - a);
  quantiles.forEach((q) =>
    groups.push([
      "quantile",
      q,
      `Quantile ${q + 1} of ${Math.max(...quantiles) + 1}${q === Math.max(...quantiles) ? ", the strongest share" : q === 0 ? ", the weakest share" : ""}`,
    ]),
  );
  const blocks = groups
    .map(([kind, q, title]) => [title, f.contexts.filter((c) => c.kind === kind && c.quantile === q)])
    .filter(([, found]) => found.length);
  if (!blocks.length) return section("Contexts", note("It fires on no context of the corpus."));
  return section(
    "Contexts",
    note("The stronger the shade, the more active it is; point at a token, or focus a line and use the arrow keys, for the number."),
    blocks.map(([title, found], i) =>
      h(
        "details",
        { open: i < 2, class: "contexts" },
        h("summary", {}, `${title} (${found.length})`),
        h(
          "ol",
          {},
          found.map((c) => context(c, f.row.max)),
        ),
      ),
    ),
  );
}

function shade(value, most) {
  return value > 0 && most > 0 ? "s" + Math.min(9, Math.max(1, Math.round((9 * value) / most))) : "";
}

function context(c, most) {
  const spans = c.tokens.map((t, i) => {
    const value = c.fires.get(i);
    return value
      ? h(
          "span",
          { class: `tok ${shade(value, most)}${i === c.peak ? " peak" : ""}`, "data-tip": `${t.trim() || "space"}: ${figure(value)}` },
          t,
        )
      : t;
  });
  let at = -1;
  const line = h(
    "p",
    {
      class: "ctx",
      tabindex: 0,
      "aria-label": `${c.tokens.join("")} Peak ${figure(c.value)} on ${c.tokens[c.peak]}`,
      onkeydown: (e) => {
        const fires = [...line.querySelectorAll(".tok")];
        if (e.key !== "ArrowRight" && e.key !== "ArrowLeft") return;
        e.preventDefault();
        at = (at + (e.key === "ArrowRight" ? 1 : -1) + fires.length) % fires.length;
        const box = fires[at].getBoundingClientRect();
        tip(fires[at].dataset.tip, box.left, box.top);
      },
      onblur: () => tip(""),
    },
    spans,
  );
  return h("li", {}, line, h("span", { class: "value", "data-tip": `document ${c.document}, token ${c.position}` }, figure(c.value)));
}

function chips(words, extra) {
  return h(
    "p",
    { class: "chips" },
    words.map((w, i) =>
      h("span", { class: "chip", "data-tip": extra ? extra[i] : null }, spelled(w)),
    ),
  );
}

const spelled = (w) => w.replace(/^ | $/g, "\u2423").replace(/\n/g, "⏎") || "∅";

// Its label; where it has none, the tokens that it fires on, as soon as they are read.
function called(sae, id, label) {
  if (label && label !== "unlabelled") return label;
  const box = h("span", { class: "soft" }, "unlabelled");
  if (isShown(sae, id))
    featureOf(sae, id)
      .then((found) => {
        const words = found ? found.firing.slice(0, 4) : [];
        if (words.length) box.append("; fires on ", ...words.flatMap((t) => [h("span", { class: "chip" }, spelled(t[0])), " "]));
      })
      .catch(() => {});
  return box;
}

function tokensOf(f) {
  const parts = [];
  if (f.firing.length)
    parts.push(
      heading(3, "Fires on"),
      chips(
        f.firing.map((t) => t[0]),
        f.firing.map(([, share, odds]) => `${percent(share)} of its activation; log-odds against the corpus ${figure(odds)}`),
      ),
    );
  if (f.promoted.length) parts.push(heading(3, "Promotes"), chips(f.promoted));
  if (f.suppressed.length) parts.push(heading(3, "Suppresses"), chips(f.suppressed));
  return parts.length ? section("Tokens", parts) : null;
}

function neighbours(sae, f) {
  if (!f.neighbours.length) return null;
  return section(
    "Nearest features",
    h(
      "ul",
      { class: "plain near" },
      f.neighbours.map(([id, cosine, label]) =>
        h("li", {}, featureLink(sae, id), h("span", { class: "soft" }, ` cosine ${figure(cosine)} `), called(sae, id, label)),
      ),
    ),
  );
}

function picturesOf(sae, number, f) {
  if (f.pictures) return f.pictures.length ? section("Pictures with and without it", pictureRows(f.pictures)) : null;
  if (!LIVE || !LIVE.pictures || !f.contexts.length) return null;
  const box = h("div", {});
  const draw = async () => {
    box.replaceChildren(note("Drawing…"));
    try {
      box.replaceChildren(...pictureRows((await ask("/api/pictures", { sae, id: number })).pictures));
    } catch (e) {
      box.replaceChildren(h("p", { class: "error", role: "alert" }, e.message));
    }
  };
  box.append(h("button", { type: "button", onclick: draw }, "Draw the prompts that fire it most, with and without it"));
  return section("Pictures with and without it", box);
}

function pictureRows(pictures) {
  return [
    note("Same prompt, same seed; without: the feature is set to 0 wherever it fires."),
    h(
      "div",
      { class: "pictures" },
      pictures.map((p) =>
        h(
          "figure",
          {},
          pair(
            ["with", "without"],
            [
              ["with it", p.with],
              ["without it", p.without],
            ].map(([how, src]) => h("img", { src, alt: `${p.prompt}, drawn ${how}` })),
          ),
          h("figcaption", {}, `${p.prompt} (seed ${p.seed})`),
        ),
      ),
    ),
  ];
}
