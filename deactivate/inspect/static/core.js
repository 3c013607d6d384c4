// Elements, figures, the tip, the theme, and which page is shown. Text enters the page as text alone: nothing here parses HTML.
const DATA = JSON.parse(document.getElementById("data").textContent);
const LIVE = DATA.live;
const SVG = "http://www.w3.org/2000/svg";
const HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8a800"]; // Okabe and Ito's, yellow darkened
const $main = document.getElementById("main");

// h("p", {class: "soft", onclick: f, style: {width: "3px"}}, "text", child, [more])
function h(tag, attrs, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

function svg(tag, attrs, ...children) {
  return fill(document.createElementNS(SVG, tag), attrs, children);
}

function fill(el, attrs, children) {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) el.style.setProperty(k, v);
    else if (name === "href" && !/^#/.test(value))
      continue; // links lead nowhere but into this page
    else if (name === "src" && !/^data:image\/png;base64,[A-Za-z0-9+/=]*$/.test(value)) continue;
    else el.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(4)) {
    if (child === null || child === undefined || child === false) continue;
    el.append(child instanceof Node ? child : String(child));
  }
  return el;
}

function figure(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size < 1e-3 || size >= 1e6) return value.toExponential(1);
  return value.toFixed(Math.max(0, Math.min(6, digits - 1 - Math.floor(Math.log10(size)))));
}

const fixed = (value, digits) => {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
};
const percent = (value) =>
  value === null || value === undefined ? "–" : fixed(100 * value, value !== 0 && Math.abs(value) < 0.1 ? 2 : 1) + " %";

// A score between 0 and 1, as long as its neighbours in a column.
const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

function heading(level, text, id) {
  return h("h" + level, { id }, text);
}

function facts(rows) {
  return h(
    "dl",
    { class: "facts" },
    rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
}

function section(title, ...children) {
  return h("section", {}, heading(2, title), children);
}

function note(...text) {
  return h("p", { class: "soft" }, text);
}

function command(text) {
  return h("pre", { tabindex: 0 }, text);
}

function segmented(label, options, chosen, change) {
  const buttons = options.map(([value, text]) =>
    h("button", { type: "button", "aria-pressed": String(value === chosen), "data-value": value, onclick: () => pick(value) }, text),
  );
  function pick(value) {
    for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.value === String(value)));
    change(value);
  }
  return h("div", { class: "segmented", role: "group", "aria-label": label }, buttons);
}

function choice(label, options, chosen, change, cls) {
  const select = h(
    "select",
    { onchange: (e) => change(e.target.value) },
    options.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text)),
  );
  return h("label", { class: "field " + (cls || "") }, h("span", {}, label), select);
}

// Before and after, side by side or one in the place of the other.
function pair(names, nodes) {
  const cells = nodes.map((node, i) => h("div", { class: "half", "data-side": String(i) }, h("small", {}, names[i]), node));
  const box = h("div", { class: "pair both" }, cells);
  const show = (mode) => {
    box.className = "pair " + mode;
    cells.forEach((c, i) => {
      c.hidden = mode !== "both" && mode !== "side" + i;
    });
  };
  return h(
    "div",
    {},
    segmented(
      "What is shown",
      [
        ["both", "both"],
        ["side0", names[0]],
        ["side1", names[1]],
      ],
      "both",
      show,
    ),
    box,
  );
}

// One tip for everything that says more when it is pointed at.
const $tip = document.getElementById("tip");
function tip(text, x, y) {
  if (!text) {
    $tip.hidden = true;
    return;
  }
  $tip.textContent = text;
  $tip.hidden = false;
  const box = $tip.getBoundingClientRect();
  $tip.style.setProperty("left", Math.max(4, Math.min(x + 12, innerWidth - box.width - 8)) + "px");
  $tip.style.setProperty("top", Math.max(4, y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px");
}
document.addEventListener("mouseover", (e) => {
  const el = e.target instanceof Element && e.target.closest("[data-tip]");
  if (el) tip(el.dataset.tip, e.clientX, e.clientY);
  else if (!(e.target instanceof HTMLCanvasElement)) tip("");
});
document.addEventListener("scroll", () => tip(""), true);
document.addEventListener("keydown", (e) => {
  if (e.key === "Escape") tip("");
});

function remembered(name, value) {
  try {
    if (value === undefined) return localStorage.getItem("efface-" + name);
    localStorage.setItem("efface-" + name, value);
  } catch (e) {
    /* a file opened from disk may keep nothing */
  }
  return null;
}

function theme(value) {
  if (value === "light" || value === "dark") document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
  remembered("theme", value);
  document.dispatchEvent(new Event("themed"));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themed")));

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Pages by the part of the address behind #: [pattern, page]. A page is a function of the matched parts that returns a node.
const routes = [];
const page = (pattern, make) => routes.push([pattern, make]);
const link = (...parts) => "#/" + parts.map((p) => encodeURIComponent(p)).join("/");
let cleanups = [];
const onLeave = (f) => cleanups.push(f);

function show() {
  const path = location.hash.replace(/^#\/?/, "");
  cleanups.forEach((f) => f());
  cleanups = [];
  tip("");
  for (const [pattern, make] of routes) {
    const match = pattern.exec(path);
    if (!match) continue;
    let made;
    try {
      made = make(...match.slice(1).map((p) => (p === undefined ? undefined : decodeURIComponent(p))));
    } catch (error) {
      made = h("p", { class: "error", role: "alert" }, "This page cannot be shown: " + error.message);
    }
    $main.replaceChildren(made);
    document.dispatchEvent(new CustomEvent("shown", { detail: path }));
    return;
  }
  $main.replaceChildren(h("p", { role: "alert" }, "There is no such page. ", h("a", { href: link() }, "Go to the first one")));
}

const isThere = (list, i) => Number.isInteger(Number(i)) && list[Number(i)] !== undefined;

function missing(what) {
  return h("p", { role: "alert" }, what + " is not in this set. ", h("a", { href: link() }, "Go to the first page"));
}
