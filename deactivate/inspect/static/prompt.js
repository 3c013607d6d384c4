// A prompt: the strongest features of each token at each hook point, and whether each gate fires.
page(/^prompt(?:\/(\d+))?$/, (n) => {
  const box = h("div", { class: "reading", "aria-live": "polite" });
  const kept = DATA.prompts;
  const first = n === undefined ? 0 : Number(n);
  if (kept[first]) box.append(reading(kept[first]));
  const parts = [heading(1, "Prompt")];
  if (LIVE && LIVE.prompts) parts.push(typed(box));
  else if (!kept.length)
    parts.push(note("No prompt was read for this file. Name some with --prompt, or use efface serve, where you can type them."));
  else parts.push(note("These prompts were read when the file was made; efface serve reads any that you type."));
  if (kept.length > 1)
    parts.push(
      choice(
        "Prompt",
        kept.map((p, i) => [i, p.text]),
        first,
        (i) => {
          location.hash = link("prompt", i);
        },
        "long",
      ),
    );
  return h("div", {}, parts, box);
});

function typed(box) {
  const text = h("textarea", { rows: 3, "aria-label": "Prompt", placeholder: "Type a prompt; Ctrl+Enter reads it" });
  const button = h("button", { type: "button", onclick: () => read() }, "Read it");
  async function read() {
    button.disabled = true;
    box.replaceChildren(note("Reading… the first prompt loads the model."));
    try {
      box.replaceChildren(reading(await ask("/api/prompt", {}, { text: text.value })));
    } catch (e) {
      box.replaceChildren(h("p", { class: "error", role: "alert" }, e.message));
    }
    button.disabled = false;
    document.dispatchEvent(new CustomEvent("read"));
  }
  text.addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) read();
  });
  return h("div", { class: "typed" }, text, button);
}

function reading(r) {
  return h(
    "div",
    {},
    r.gates.length > 0 &&
      section(
        "Gates",
        h(
          "ul",
          { class: "plain" },
          r.gates.map((g) =>
            h(
              "li",
              { class: "gate" },
              h("span", { class: g.fires ? "yes" : "no" }, g.fires ? "✓ fires" : "○ stays shut"),
              ` ${g.name}: score ${figure(g.score)}, threshold ${figure(g.threshold)}`,
            ),
          ),
        ),
      ),
    r.layers.length ? r.layers.map(layerOf) : note("No SAE of this set reads prompts."),
  );
}

function layerOf(layer) {
  const label = (f) => layer.labels[f] || "";
  const value = (i, f) => {
    const hit = layer.features[i].find(([g]) => g === f);
    return hit ? hit[1] : 0;
  };
  const detail = h("div", { class: "picked" });
  const strip = h("p", { class: "ctx strip" });
  let chosen = layer.strongest.length ? layer.strongest[0][0] : null,
    token = null;
  const list = (rows) =>
    h(
      "ul",
      { class: "plain near" },
      rows.map(([f, v]) =>
        h(
          "li",
          {},
          h(
            "button",
            {
              type: "button",
              class: "paint",
              "data-at": "f" + f,
              "aria-pressed": String(f === chosen),
              "data-tip": "colour the tokens by this feature",
              onclick: () => {
                chosen = f;
                draw();
              },
            },
            h("span", { "aria-hidden": "true" }, "◧"),
            h("span", { class: "hidden" }, `colour the tokens by feature ${f}`),
          ),
          " ",
          featureLink(layer.sae, f),
          h("span", { class: "soft" }, ` ${figure(v)} `),
          called(layer.sae, f, label(f)),
        ),
      ),
    );
  function draw() {
    const focused = (strip.contains(document.activeElement) || detail.contains(document.activeElement)) && document.activeElement.dataset.at;
    const most = Math.max(...layer.tokens.map((_, i) => value(i, chosen)), 0);
    strip.replaceChildren(
      ...layer.tokens.map((t, i) => {
        if (layer.active[i] === null) return h("span", { class: "tok lost", "data-tip": "This token does not count: no SAE is read at it" }, t);
        return h(
          "button",
          {
            type: "button",
            class: `tok ${shade(value(i, chosen), most)}`,
            "data-at": "t" + i,
            "aria-pressed": String(i === token),
            "data-tip": `${layer.active[i]} features fire here${value(i, chosen) ? `; feature ${chosen}: ${figure(value(i, chosen))}` : ""}`,
            onclick: () => {
              token = token === i ? null : i;
              draw();
            },
          },
          t,
        );
      }),
    );
    detail.replaceChildren(
      heading(3, token === null ? "Strongest on any token" : `Strongest on «${layer.tokens[token].trim()}»`),
      token === null ? list(layer.strongest) : list(layer.features[token]),
    );
    const again = focused && (strip.querySelector(`[data-at="${focused}"]`) || detail.querySelector(`[data-at="${focused}"]`));
    if (again) again.focus();
  }
  draw();
  return section(
    layer.hook_point,
    strip,
    note(`Colour: feature ${chosen === null ? "none" : chosen} unless you choose another; a token can be chosen too.`),
    detail,
  );
}
