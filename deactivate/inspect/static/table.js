// A table of any length: only the rows in sight are in the page. Columns: {key, title, about, width, digits, wide, far, show(value, row) -> node};
// a wide one is left out on a narrow screen, a far one where there is no room for all.
const ROW = 36;
const PRINTED = 100;

class VirtualTable {
  constructor({ columns, source, sort, desc = true, href, name, height = 560 }) {
    Object.assign(this, { columns, source, href, name, height });
    this.query = { text: "", mode: "label", where: {}, status: "", sort: sort || "", desc };
    this.active = 0;
    this.total = 0;
    this.narrow = matchMedia("(max-width: 46rem)");
    this.middling = matchMedia("(max-width: 80rem)");
    this.head = h("div", { class: "vt-head", role: "row" });
    this.space = h("div", { class: "vt-space", role: "rowgroup" });
    this.box = h(
      "div",
      { class: "vt", role: "grid", tabindex: 0, "aria-label": name, onscroll: () => this.soon(), onkeydown: (e) => this.key(e) },
      this.head,
      this.space,
    );
    this.count = h("p", { class: "soft count", role: "status", "aria-live": "polite" });
    this.node = h("div", {}, this.count, this.box);
    const relay = () => {
      this.heads();
      this.refresh();
    };
    const printed = (on) => () => {
      this.printing = on;
      this.draw();
    };
    const before = printed(true),
      after = printed(false);
    for (const m of [this.narrow, this.middling]) m.addEventListener("change", relay);
    addEventListener("beforeprint", before);
    addEventListener("afterprint", after);
    onLeave(() => {
      for (const m of [this.narrow, this.middling]) m.removeEventListener("change", relay);
      removeEventListener("beforeprint", before);
      removeEventListener("afterprint", after);
    });
    this.heads();
    this.refresh();
  }

  seen() {
    return this.columns.filter((c) => !((c.wide && this.narrow.matches) || (c.far && this.middling.matches)));
  }

  heads() {
    const shown = this.seen();
    this.box.style.setProperty("--columns", shown.map((c) => (this.narrow.matches && c.small) || c.width).join(" "));
    const least = shown.reduce((sum, c) => sum + Number(/([\d.]+)rem/.exec(c.width)[1]) + 0.8, 0.2);
    this.box.style.setProperty("--least", least + "rem");
    this.box.setAttribute("aria-colcount", shown.length);
    this.head.replaceChildren(
      ...shown.map((c) => {
        const sorted = this.query.sort === c.key;
        const arrow = sorted ? (this.query.desc ? " ▼" : " ▲") : "";
        const inner = c.unsorted
          ? c.title
          : h(
              "button",
              { type: "button", "data-sort": c.key, "data-tip": c.about, onclick: () => this.sortBy(c.key) },
              c.title,
              h("span", { "aria-hidden": "true" }, arrow),
            );
        return h(
          "div",
          { role: "columnheader", class: c.text ? "" : "num", "aria-sort": sorted ? (this.query.desc ? "descending" : "ascending") : null },
          inner,
        );
      }),
    );
  }

  sortBy(key) {
    const text = (this.columns.find((c) => c.key === key) || {}).text;
    this.query = { ...this.query, sort: key, desc: this.query.sort === key ? !this.query.desc : !text };
    this.heads();
    const button = this.head.querySelector(`[data-sort="${key}"]`);
    if (button) button.focus();
    this.refresh();
  }

  ask(changes) {
    this.query = { ...this.query, ...changes };
    this.refresh();
  }

  async refresh() {
    this.box.scrollTop = 0;
    this.active = 0;
    await this.draw();
  }

  soon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  async draw() {
    const first = this.printing ? 0 : Math.max(0, Math.floor(this.box.scrollTop / ROW) - 6);
    const n = this.printing ? PRINTED : Math.ceil(this.height / ROW) + 14;
    const turn = (this.turn = (this.turn || 0) + 1);
    let got;
    try {
      got = await this.source.page(this.query, first, n);
    } catch (error) {
      this.count.textContent = error.message;
      return;
    }
    if (turn !== this.turn) return;
    this.total = got.total;
    this.first = first;
    this.space.style.setProperty("height", this.total * ROW + "px");
    this.box.style.setProperty("max-height", this.height + "px");
    this.box.setAttribute("aria-rowcount", this.total + 1);
    this.count.textContent = `${this.total.toLocaleString("en")} ${this.total === 1 ? "row" : "rows"}${got.note ? "; " + got.note : ""}`;
    if (this.printing && got.rows.length < this.total) this.count.textContent += `, of which the first ${got.rows.length} are printed`;
    const shown = this.seen();
    this.space.replaceChildren(...got.rows.map((row, i) => this.row(row, first + i, shown)));
    this.mark();
    this.box.dispatchEvent(new CustomEvent("drawn"));
  }

  row(row, index, shown) {
    const values = Object.fromEntries(this.source.columns.map((name, i) => [name, row[i]]));
    const cells = shown.map((c) =>
      h(
        "div",
        { role: "gridcell", class: c.text ? "text" : "num" },
        c.show ? c.show(values[c.key], values) : c.text ? values[c.key] : figure(values[c.key]),
      ),
    );
    for (const a of cells.flatMap((c) => [...c.querySelectorAll("a")])) a.tabIndex = -1; // Enter on the row opens it
    return h(
      "div",
      {
        class: "vt-row",
        role: "row",
        id: `row-${this.name.replace(/\W+/g, "-")}-${index}`,
        "aria-rowindex": index + 2,
        "data-index": index,
        "data-href": this.href && this.href(values),
        style: { top: index * ROW + "px" },
        onclick: (e) => {
          if (!e.target.closest("a, button")) this.open(e.currentTarget);
        },
      },
      cells,
    );
  }

  open(el) {
    if (el && el.dataset.href) location.hash = el.dataset.href.replace(/^#/, "");
  }

  mark() {
    for (const el of this.space.children) {
      const on = Number(el.dataset.index) === this.active;
      el.classList.toggle("active", on);
      if (on) this.box.setAttribute("aria-activedescendant", el.id);
    }
  }

  key(e) {
    if (e.target !== this.box) return;
    const many = Math.floor(this.box.clientHeight / ROW) - 2;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: many, PageUp: -many, Home: -Infinity, End: Infinity };
    if (e.key === "Enter") this.open(this.space.querySelector(`[data-index="${this.active}"]`));
    if (!(e.key in moves) || !this.total) return;
    e.preventDefault();
    this.active = Math.min(this.total - 1, Math.max(0, this.active + moves[e.key]));
    const top = this.active * ROW,
      room = this.box.clientHeight - ROW;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + ROW > this.box.scrollTop + room) this.box.scrollTop = top + ROW - room;
    this.mark();
  }
}

// Search, status and bounds over a table.
function controls(table, { statuses = [], bounds = [], placeholder, modes }) {
  let timer,
    changes = {};
  const later = (change) => {
    Object.assign(changes, change);
    clearTimeout(timer);
    timer = setTimeout(() => {
      table.ask(changes);
      changes = {};
    }, 180);
  };
  const search = h("input", {
    type: "search",
    placeholder,
    "aria-label": placeholder,
    oninput: (e) => later({ text: e.target.value }),
  });
  const where = {};
  const number = (column, side, words) =>
    h("input", {
      type: "number",
      step: "any",
      placeholder: words,
      "aria-label": `${column.title}, ${words}`,
      "data-bound": `${column.key}-${side}`,
      oninput: (e) => {
        const ends = [...(where[column.key] || [null, null])];
        ends[side] = e.target.value === "" ? null : Number(e.target.value);
        where[column.key] = ends;
        later({ where: Object.fromEntries(Object.entries(where).filter(([, [low, high]]) => low !== null || high !== null)) });
      },
    });
  const fields = bounds.map((c) =>
    h("div", { class: "bound" }, h("span", {}, c.title), number(c, 0, "least"), number(c, 1, "most"), c.about && h("small", {}, c.about)),
  );
  return h(
    "div",
    { class: "controls" },
    h(
      "div",
      { class: "line" },
      h("label", { class: "field grow" }, h("span", {}, "Search"), search),
      modes && choice("in", modes, "label", (mode) => table.ask({ mode })),
      statuses.length > 0 && choice("Labels", [["", "all"], ...statuses.map((s) => [s, s])], "", (status) => table.ask({ status })),
    ),
    fields.length > 0 && h("details", { class: "filters" }, h("summary", {}, "What the columns say, and filters"), h("div", { class: "bounds" }, fields)),
  );
}
