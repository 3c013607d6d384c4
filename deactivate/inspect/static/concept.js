// A concept: ranked features with their evidence, scores by split, the gate's curve, what else the set touches; two concepts side by side.
page(/^concept\/(\d+)(?:\/(\d+))?$/, (a, b) => {
  const first = DATA.concepts[Number(a)],
    second = b === undefined ? null : DATA.concepts[Number(b)];
  if (!first || (b !== undefined && !second)) return missing("This concept");
  const others = DATA.concepts.map((c, i) => [i, c.name]).filter(([i]) => i !== Number(a));
  return h(
    "div",
    {},
    heading(1, second ? `${first.name} and ${second.name}` : first.name),
    h(
      "div",
      { class: "line" },
      DATA.concepts.length > 1 &&
        choice(
          "Concept",
          DATA.concepts.map((c, i) => [i, c.name]),
          a,
          (i) => {
            location.hash = link("concept", i);
          },
        ),
      others.length > 0 &&
        choice("Beside it", [["", "none"], ...others], b === undefined ? "" : b, (i) => {
          location.hash = i === "" ? link("concept", a) : link("concept", a, i);
        }),
    ),
    second
      ? [
          shared(first, second),
          h(
            "div",
            { class: "columns even" },
            [first, second].map((c) => h("div", {}, heading(2, c.name), scores(c), gateOf(c))),
          ),
          curvesOf([first, second]),
        ]
      : [scores(first), gateOf(first), curvesOf([first])],
    (second ? [first, second] : [first]).map((c) => ranked(c, second ? ` of ${c.name}` : "")),
    second ? null : touched(first),
  );
});

const shareOf = (v) => (v === null || v === undefined ? "–" : percent(v));

function scores(c) {
  if (c.report.of_edit)
    return section(
      "Where these features come from",
      note(`They are those that the edit ${c.report.of_edit} uses, in its order, with what was measured of them when it was made.`),
    );
  const set = c.report.set_auroc || {};
  const splits = ["train", "validation", "test"].filter((s) => set[s]);
  return section(
    `The first ${c.report.n_set} features as one detector`,
    note(
      "AUROC of the summed, scaled maxima of the set in a text. Features were chosen on train and ranked on validation; ",
      splits.includes("test")
        ? `test chose nothing (looks at it so far: ${figure(c.looks || 1)}).`
        : "test is shown with --split test, which counts as a look at it.",
    ),
    splits.length
      ? h(
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
                h("th", { scope: "col" }, "against"),
                splits.map((s) => h("th", { scope: "col", class: "num" }, s)),
              ),
            ),
            h(
              "tbody",
              {},
              [
                ["all", "all others"],
                ["neighbours", "neighbours"],
                ["general", "general texts"],
              ].map(([k, words]) =>
                h(
                  "tr",
                  {},
                  h("th", { scope: "row" }, words),
                  splits.map((s) => h("td", { class: "num" }, figure(set[s][k]))),
                ),
              ),
            ),
          ),
        )
      : note("No split was read."),
    Object.keys(c.report.triggers || {}).length > 0 &&
      h(
        "p",
        {},
        "At its threshold it fires on test on ",
        Object.entries(c.report.triggers).map(([k, v], i) => [i ? ", " : "", h("strong", {}, shareOf(v)), " of ", k]),
        ".",
      ),
  );
}

const RANKED = [
  { key: "rank", title: "Rank", width: "4rem", small: "3.4rem", about: "By AUROC on validation" },
  { key: "id", title: "Feature", width: "5rem", small: "3.9rem" },
  {
    key: "words",
    title: "Label or use",
    width: "minmax(8rem, 3fr)",
    small: "minmax(4rem, 1fr)",
    text: true,
    about: "Its label; where none stands, the tokens on which it is strongest, or that it promotes, or a prompt that fires it",
  },
  {
    key: "train",
    title: "Train",
    width: "5rem",
    wide: true,
    show: score,
    about: "AUROC of its largest activation in a text: concept against everything else",
  },
  { key: "validation", title: "Validation", width: "6rem", small: "5rem", show: score, about: "The same on validation, by which features are ranked" },
  { key: "test", title: "Test", width: "4.6rem", wide: true, show: score, about: "The same on test, which chose nothing" },
  { key: "rho", title: "Ratio", width: "5rem", wide: true, far: true, about: "Activation a token on the concept over that on control texts" },
  { key: "delta", title: "Surplus", width: "5.4rem", wide: true, far: true, about: "Firings on the concept minus those on as many control tokens" },
  { key: "fired", title: "Fired", width: "5rem", wide: true, far: true, about: "Tokens of the concept's train texts on which it fires" },
  { key: "source", title: "Found by", width: "6.4rem", wide: true, far: true, text: true, about: "Vocabulary, contrast of activations, or both" },
  { key: "hook_point", title: "Hook point", width: "minmax(9rem, 1fr)", wide: true, text: true },
];

function ranked(c, of) {
  const rows = c.report.features.map((f, i) => {
    const promoted = (f.promoted || []).slice(0, 4).map((t) => t.trim());
    const words =
      labelOf(f.hook_point, f.id) ||
      (f.label && "strongest on " + f.label) ||
      (promoted.length && "promotes " + promoted.join(", ")) ||
      (f.prompts && f.prompts.length && "fires in " + f.prompts[0]) ||
      "";
    return [
      i + 1,
      f.id,
      words,
      f.auroc.train ?? null,
      f.auroc.validation ?? null,
      f.auroc.test ?? null,
      f.rho,
      f.delta_phi,
      f.fired,
      f.source,
      f.hook_point,
    ];
  });
  const columns = RANKED.map((k) => ({ ...k }));
  const tested = c.report.features.some((f) => f.auroc.test !== null && f.auroc.test !== undefined);
  columns[1].show = (id, row) => featureLink(saeAt(row.hook_point), id, String(id));
  columns[2].show = (words, row) => h("span", { class: labelOf(row.hook_point, row.id) ? "" : "soft", title: words }, words);
  const names = columns.map((k) => k.key);
  const source = new ListSource(names, rows, (row, text) => String(row[2]).toLowerCase().includes(text));
  const all = new VirtualTable({
    columns: columns.filter((k) => tested || k.key !== "test"),
    source,
    sort: "rank",
    desc: false,
    name: "Ranked features" + of,
    height: 430,
    href: (row) => (isShown(saeAt(row.hook_point), row.id) ? link("sae", saeAt(row.hook_point), "f", row.id) : null),
  });
  return section(
    "Ranked features" + of,
    c.report.found > rows.length && note(`The first ${rows.length} of ${figure(c.report.found)}.`),
    controls(all, { placeholder: "words", bounds: all.columns.filter((k) => !k.text && k.key !== "id") }),
    all.node,
  );
}

function shared(a, b) {
  const key = (f) => f.hook_point + "/" + f.id;
  const at = new Map(b.report.features.map((f, i) => [key(f), i]));
  const both = a.report.features.map((f, i) => [f, i, at.get(key(f))]).filter(([, , j]) => j !== undefined);
  return section(
    "Features that both have",
    both.length
      ? h(
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
                ["feature", `rank in ${a.name}`, `rank in ${b.name}`, "label"].map((t, i) =>
                  h("th", { scope: "col", class: i === 1 || i === 2 ? "num" : "" }, t),
                ),
              ),
            ),
            h(
              "tbody",
              {},
              both
                .slice(0, 60)
                .map(([f, i, j]) =>
                  h(
                    "tr",
                    {},
                    h("td", {}, featureLink(saeAt(f.hook_point), f.id, String(f.id))),
                    h("td", { class: "num" }, String(i + 1)),
                    h("td", { class: "num" }, String(j + 1)),
                    h("td", {}, f.label || labelOf(f.hook_point, f.id) || (f.promoted || []).slice(0, 3).join(", ")),
                  ),
                ),
            ),
          ),
        )
      : note("None of their ranked features."),
  );
}

function touched(c) {
  const set = c.report.features.slice(0, c.report.n_set);
  if (!set.length) return null;
  return section(
    "What else the set touches",
    note("Each feature of the set, how often it fires on any text, and what it fires on there."),
    h(
      "ul",
      { class: "plain near" },
      set.map((f) => {
        const sae = saeAt(f.hook_point);
        const li = h("li", {}, featureLink(sae, f.id), " ");
        if (isShown(sae, f.id)) {
          featureOf(sae, f.id)
            .then((found) => {
              if (found)
                li.append(
                  h("span", { class: "soft" }, `fires on ${percent(found.row.density)} of tokens; `),
                  ...(found.row.status === "labelled" ? [`label “${found.row.label}”; `] : []),
                  chips(
                    found.firing.slice(0, 6).map((t) => t[0]),
                    found.firing.slice(0, 6).map((t) => percent(t[1]) + " of its activation"),
                  ),
                );
            })
            .catch(() => {});
        } else
          li.append(h("span", { class: "soft" }, `${f.fired === null ? "" : figure(f.fired) + " firings on train; "}not in this file`));
        return li;
      }),
    ),
  );
}
