// Where rows and features come from: the file itself, or the server that the page came from.
const CHUNK = 100;

async function ask(path, query, body) {
  const text = new URLSearchParams(query || {}).toString();
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path + (text ? "?" + text : ""), options);
  } catch (e) {
    throw new Error("the server does not answer; is efface serve still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || "the server answers " + response.status);
  return answer;
}

// Rows held here: filtered and sorted by a query {text, mode, where, status, sort, desc}.
class ListSource {
  constructor(columns, rows, matches) {
    this.columns = columns;
    this.rows = rows;
    this.matches = matches || (() => true);
    this.key = null;
  }

  found(query) {
    const key = JSON.stringify(query);
    if (key === this.key) return this.kept;
    const at = (name) => this.columns.indexOf(name);
    const bounds = Object.entries(query.where || {}).map(([name, [low, high]]) => [at(name), low, high]);
    const status = at("status");
    const text = (query.text || "").trim().toLowerCase();
    const kept = this.rows.filter(
      (row) =>
        (!query.status || row[status] === query.status) &&
        bounds.every(
          ([i, low, high]) =>
            row[i] !== null && row[i] !== undefined && (low === null || row[i] >= low) && (high === null || row[i] <= high),
        ) &&
        (!text || this.matches(row, text, query.mode)),
    );
    const i = at(query.sort),
      sign = query.desc ? -1 : 1;
    if (i >= 0) {
      const empty = (v) => v === null || v === undefined || v === "";
      kept.sort((a, b) => {
        if (empty(a[i]) || empty(b[i])) return empty(a[i]) - empty(b[i]);
        return sign * (typeof a[i] === "string" ? a[i].localeCompare(b[i], "en", { numeric: true }) : a[i] - b[i]);
      });
    }
    this.key = key;
    this.kept = kept;
    return kept;
  }

  async page(query, offset, limit) {
    const kept = this.found(query);
    return { total: kept.length, rows: kept.slice(offset, offset + limit) };
  }
}

class ServerSource {
  constructor(sae, columns) {
    this.sae = sae;
    this.columns = columns;
    this.kept = new Map();
  }

  async page(query, offset, limit) {
    if (query.text && query.mode === "context") return this.contexts(query.text, offset, limit);
    const first = Math.floor(offset / CHUNK),
      last = Math.floor((offset + Math.max(limit, 1) - 1) / CHUNK);
    const chunks = [];
    for (let c = first; c <= last; c++) chunks.push(this.chunk(query, c));
    const got = await Promise.all(chunks);
    const rows = got.flatMap((g) => g.rows).slice(offset - first * CHUNK, offset - first * CHUNK + limit);
    return { total: got[0].total, rows };
  }

  chunk(query, c) {
    const where = Object.entries(query.where || {})
      .map(([n, [low, high]]) => `${n}:${low ?? ""}:${high ?? ""}`)
      .join(",");
    const asked = {
      sae: this.sae,
      text: query.text || "",
      status: query.status || "",
      sort: query.sort || "",
      desc: query.desc ? 1 : 0,
      where,
      offset: c * CHUNK,
      limit: CHUNK,
    };
    return this.once(JSON.stringify(asked), () => ask("/api/rows", asked));
  }

  async contexts(text, offset, limit) {
    const got = await this.once("in " + text, () => ask("/api/contexts", { sae: this.sae, text }));
    return {
      total: got.total,
      rows: got.rows.slice(offset, offset + limit),
      note: got.looked < got.of ? `looked through the first ${figure(got.looked)} of ${figure(got.of)} features` : "",
    };
  }

  once(key, make) {
    if (!this.kept.has(key)) {
      if (this.kept.size > 400) this.kept.clear();
      this.kept.set(
        key,
        make().catch((e) => {
          this.kept.delete(key);
          throw e;
        }),
      );
    }
    return this.kept.get(key);
  }
}

const sources = new Map();
function rowsOf(sae) {
  if (!sources.has(sae)) {
    const about = DATA.saes[sae];
    sources.set(sae, LIVE ? new ServerSource(sae, about.columns) : new ListSource(about.columns, about.rows || [], inFile(about)));
  }
  return sources.get(sae);
}

function inFile(about) {
  const heads = new Map();
  const texts = new Map();
  return ([id, label, status], text, mode) => {
    const detail = about.details[id];
    if (mode === "context") {
      if (!texts.has(id))
        texts.set(
          id,
          detail.contexts
            .map((c) => c[6].map((w) => DATA.words[w]).join(""))
            .join("\n")
            .toLowerCase(),
        );
      return texts.get(id).includes(text);
    }
    if (!heads.has(id))
      heads.set(
        id,
        [...detail.promoted, ...detail.firing.map((t) => t[0])].map((w) => DATA.words[w].trim().toLowerCase()),
      );
    return (status === "labelled" && label.toLowerCase().includes(text)) || heads.get(id).some((w) => w.startsWith(text));
  };
}

const features = new Map();
async function featureOf(sae, id) {
  const key = sae + "/" + id;
  if (features.has(key)) return features.get(key);
  const about = DATA.saes[sae];
  let found = null;
  if (LIVE && about.store) {
    const got = await ask("/api/feature", { sae, id });
    found = spelt(got, got.words, got.row, about.columns);
  } else if (about.details && about.details[id]) {
    found = spelt(
      about.details[id],
      DATA.words,
      about.rows.find((r) => r[0] === Number(id)),
      about.columns,
    );
  }
  if (features.size > 200) features.clear();
  features.set(key, found);
  return found;
}

function spelt(d, words, row, columns) {
  const w = (i) => words[i];
  return {
    ...d,
    row: Object.fromEntries(columns.map((name, i) => [name, row[i]])),
    promoted: d.promoted.map(w),
    suppressed: d.suppressed.map(w),
    firing: d.firing.map(([t, share, odds]) => [w(t), share, odds]),
    contexts: d.contexts.map(([kind, quantile, document, position, peak, value, tokens, fires]) => ({
      kind,
      quantile,
      document,
      position,
      peak,
      value,
      tokens: tokens.map(w),
      fires: new Map(fires),
    })),
  };
}

const saeAt = (hookPoint) => DATA.saes.findIndex((s) => s.hook_point === hookPoint);
const isShown = (sae, id) =>
  sae >= 0 && (LIVE ? Boolean(DATA.saes[sae].store) : Boolean(DATA.saes[sae].details && DATA.saes[sae].details[id]));

// A feature by name, linked where it can be opened.
function featureLink(sae, id, text) {
  const words = text || "feature " + id;
  return isShown(sae, id) ? h("a", { href: link("sae", sae, "f", id) }, words) : h("span", {}, words);
}
