// The bar at the top, and the page that the address names.
function bar() {
  const to = (href, text, pattern) => h("a", { href, "data-pattern": pattern }, text);
  const links = [
    DATA.saes.length > 0 && to(link(), "Features", "^(sae|$)"),
    DATA.concepts.length > 0 && to(link("concept", 0), "Concepts", "^concept"),
    DATA.edits.length > 0 && to(link("edit", 0), "Edits", "^edit"),
    (DATA.prompts.length > 0 || (LIVE && LIVE.prompts)) && to(link("prompt"), "Prompt", "^prompt"),
    DATA.tables.length > 0 && to(link("compare"), "Compare", "^compare"),
  ];
  return [
    h("nav", { "aria-label": "Pages" }, links),
    choice(
      "Theme",
      [
        ["auto", "as the system"],
        ["light", "light"],
        ["dark", "dark"],
      ],
      remembered("theme") || "auto",
      theme,
      "theme",
    ),
  ];
}

function marked() {
  const path = location.hash.replace(/^#\/?/, "");
  for (const a of document.querySelectorAll("#top nav a")) {
    if (new RegExp(a.dataset.pattern).test(path)) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
}

document.getElementById("top").append(...bar());
theme(remembered("theme") || "auto");
addEventListener("hashchange", () => {
  show();
  marked();
  scrollTo(0, 0);
  $main.focus({ preventScroll: true });
});
addEventListener("beforeprint", () => {
  for (const d of document.querySelectorAll("details:not([open])")) {
    if (d.querySelectorAll("li").length > PRINTED) continue;
    d.open = true;
    d.dataset.printed = "1";
  }
});
addEventListener("afterprint", () => {
  for (const d of document.querySelectorAll("details[data-printed]")) {
    d.open = false;
    delete d.dataset.printed;
  }
});
show();
marked();
document.documentElement.dataset.ready = "1";
