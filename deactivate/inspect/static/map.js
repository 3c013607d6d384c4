// The map of features: a canvas, since there may be a hundred thousand points. The table beside it says the same in words.
const SHAPES = 7;

function featureMap(sae, found, open) {
  const state = { zoom: 1, x: 0, y: 0, only: null, over: -1 };
  const canvas = h("canvas", {
    tabindex: 0,
    role: "img",
    "aria-label": `Map of ${found.ids.length.toLocaleString("en")} features by the likeness of their decoder rows. Plus and minus zoom, arrows move; the table below lists the same features.`,
  });
  const hue = (g) => (g < found.groups.length - 2 ? HUES[g % HUES.length] : g === found.groups.length - 2 ? "--soft" : "--line-strong");
  const count = found.groups.map(() => 0);
  found.group.forEach((g) => {
    count[g]++;
  });

  function size() {
    const width = canvas.clientWidth,
      height = canvas.clientHeight,
      dense = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dense) || canvas.height !== Math.round(height * dense)) {
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
    }
    return [width, height, dense];
  }

  function place(i, width, height) {
    const fit = (v, to, move) => 10 + (v - 0.5) * state.zoom * (to - 20) + (to - 20) / 2 + move;
    return [fit(found.x[i], width, state.x), fit(found.y[i], height, state.y)];
  }

  // All points on a layer of their own: it stays while the mouse moves.
  const layer = document.createElement("canvas");
  const radius = found.ids.length > 20000 ? 1.2 : found.ids.length > 3000 ? 1.8 : 3.4;
  function paint() {
    const [width, height, dense] = size();
    layer.width = canvas.width;
    layer.height = canvas.height;
    const c = layer.getContext("2d");
    c.setTransform(dense, 0, 0, dense, 0, 0);
    const hues = found.groups.map((_, g) => (hue(g).startsWith("--") ? colour(hue(g)) : hue(g)));
    const order = [...found.groups.keys()].reverse(); // those without a label lie below
    for (const g of order) {
      if (state.only !== null && state.only !== g) continue;
      c.fillStyle = c.strokeStyle = hues[g];
      c.globalAlpha = g >= found.groups.length - 2 ? 0.55 : 0.9;
      for (let i = 0; i < found.ids.length; i++)
        if (found.group[i] === g) shape(c, g, ...place(i, width, height), radius, g === found.groups.length - 1);
    }
  }

  function draw() {
    if (!canvas.clientWidth) return;
    paint();
    ring();
  }

  function ring() {
    const [width, height, dense] = size();
    const c = canvas.getContext("2d");
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, canvas.width, canvas.height);
    if (layer.width && layer.height) c.drawImage(layer, 0, 0);
    if (state.over < 0) return;
    c.setTransform(dense, 0, 0, dense, 0, 0);
    c.strokeStyle = colour("--fg");
    c.lineWidth = 2;
    c.beginPath();
    c.arc(...place(state.over, width, height), radius + 4, 0, 7);
    c.stroke();
  }

  function nearest(e) {
    const box = canvas.getBoundingClientRect(),
      [width, height] = size();
    const px = e.clientX - box.left,
      py = e.clientY - box.top;
    let best = -1,
      least = 14 * 14;
    for (let i = 0; i < found.ids.length; i++) {
      if (state.only !== null && found.group[i] !== state.only) continue;
      const [x, y] = place(i, width, height),
        d = (x - px) ** 2 + (y - py) ** 2;
      if (d < least) {
        least = d;
        best = i;
      }
    }
    return best;
  }

  function zoom(by) {
    const before = state.zoom;
    state.zoom = Math.max(1, Math.min(60, before * by));
    state.x *= state.zoom / before;
    state.y *= state.zoom / before;
    if (state.zoom === 1) state.x = state.y = 0;
    draw();
  }

  let drag = null,
    name = () => "";
  canvas.addEventListener("mousemove", (e) => {
    if (drag) {
      state.x = drag[2] + e.clientX - drag[0];
      state.y = drag[3] + e.clientY - drag[1];
      draw();
      return;
    }
    state.over = nearest(e);
    ring();
    tip(state.over < 0 ? "" : name(found.ids[state.over], state.over), e.clientX, e.clientY);
  });
  canvas.addEventListener("mouseleave", () => {
    state.over = -1;
    tip("");
    ring();
  });
  canvas.addEventListener("mousedown", (e) => {
    drag = [e.clientX, e.clientY, state.x, state.y];
  });
  const up = (e) => {
    if (drag && e.target === canvas && Math.abs(e.clientX - drag[0]) + Math.abs(e.clientY - drag[1]) < 4) {
      const i = nearest(e);
      if (i >= 0) open(found.ids[i]);
    }
    drag = null;
  };
  addEventListener("mouseup", up);
  canvas.addEventListener(
    "wheel",
    (e) => {
      if (e.ctrlKey || document.activeElement === canvas) {
        e.preventDefault();
        zoom(e.deltaY < 0 ? 1.2 : 1 / 1.2);
      }
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (e) => {
    const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    if (e.key === "+" || e.key === "=") zoom(1.4);
    else if (e.key === "-") zoom(1 / 1.4);
    else if (e.key in moves) {
      state.x += moves[e.key][0];
      state.y += moves[e.key][1];
      draw();
    } else return;
    e.preventDefault();
  });
  const watch = new ResizeObserver(draw);
  watch.observe(canvas);
  document.addEventListener("themed", draw);
  onLeave(() => {
    watch.disconnect();
    document.removeEventListener("themed", draw);
    removeEventListener("mouseup", up);
  });

  const legend = h(
    "div",
    { class: "legend", role: "group", "aria-label": "Labels on the map" },
    found.groups.map((words, g) => {
      if (!count[g]) return null;
      const key = svg(
        "svg",
        { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" },
        svg("path", {
          d: SHAPE_PATHS[g < found.groups.length - 2 ? g % SHAPES : 0],
          fill: g === found.groups.length - 1 ? "none" : hue(g).startsWith("--") ? `var(${hue(g)})` : hue(g),
          stroke: hue(g).startsWith("--") ? `var(${hue(g)})` : hue(g),
        }),
      );
      return h(
        "button",
        {
          type: "button",
          "aria-pressed": "false",
          onclick: (e) => {
            state.only = state.only === g ? null : g;
            legend.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", "false"));
            e.currentTarget.setAttribute("aria-pressed", String(state.only === g));
            draw();
          },
        },
        key,
        `${words} (${count[g].toLocaleString("en")})`,
      );
    }),
  );
  const buttons = h(
    "div",
    { class: "segmented", role: "group", "aria-label": "Zoom" },
    h("button", { type: "button", "aria-label": "zoom in", onclick: () => zoom(1.5) }, "+"),
    h("button", { type: "button", "aria-label": "zoom out", onclick: () => zoom(1 / 1.5) }, "−"),
    h(
      "button",
      {
        type: "button",
        onclick: () => {
          state.zoom = 1;
          state.x = state.y = 0;
          draw();
        },
      },
      "all",
    ),
  );
  return {
    node: h("div", { class: "map" }, canvas, buttons, legend),
    named: (f) => {
      name = f;
    },
  };
}

const SHAPE_PATHS = [
  "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0",
  "M-5-5h10v10h-10z",
  "M0-6l6 11h-12z",
  "M0-6l6 6l-6 6l-6-6z",
  "M0 6l6-11h-12z",
  "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
  "M-6-3l3-3l3 3l3-3l3 3l-3 3l3 3l-3 3l-3-3l-3 3l-3-3l3-3z",
];

function shape(c, g, x, y, r, hollow) {
  c.beginPath();
  const kind = g % SHAPES;
  if (r < 3 || hollow || kind === 0) c.arc(x, y, hollow ? r * 0.8 : r, 0, 7);
  else if (kind === 1) c.rect(x - r, y - r, 2 * r, 2 * r);
  else if (kind === 5) {
    c.rect(x - r / 2.5, y - 1.2 * r, 0.8 * r, 2.4 * r);
    c.rect(x - 1.2 * r, y - r / 2.5, 2.4 * r, 0.8 * r);
  } else {
    const corners = {
      2: [
        [0, -1.2],
        [1.2, 1],
        [-1.2, 1],
      ],
      3: [
        [0, -1.3],
        [1.3, 0],
        [0, 1.3],
        [-1.3, 0],
      ],
      4: [
        [0, 1.2],
        [1.2, -1],
        [-1.2, -1],
      ],
      6: [
        [-1, -1],
        [0, -0.4],
        [1, -1],
        [0.4, 0],
        [1, 1],
        [0, 0.4],
        [-1, 1],
        [-0.4, 0],
      ],
    }[kind];
    corners.forEach(([a, b], i) => (i ? c.lineTo(x + a * r, y + b * r) : c.moveTo(x + a * r, y + b * r)));
    c.closePath();
  }
  if (hollow) c.stroke();
  else c.fill();
}
