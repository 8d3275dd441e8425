(() => {
  "use strict";
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const element = (tag, text, attributes = {}) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };

  // Figures: resolve the palette's variables, show the traces of what is selected, draw.
  const figures = parse("figures");
  const config = { responsive: true, displayModeBar: false }; // its bar lies over legends
  const options = [...document.querySelectorAll(".choices input")];
  const keyOf = (input) => input.name.slice(0, input.name.indexOf("-"));
  const chosen = Object.fromEntries(options.filter((o) => o.checked).map((o) => [keyOf(o), o.value]));

  const painted = (value) => {
    const style = getComputedStyle(document.documentElement);
    const walk = (v) => {
      if (typeof v === "string") return v.startsWith("var(--") ? style.getPropertyValue(v.slice(4, -1)).trim() : v;
      if (Array.isArray(v)) return v.map(walk);
      if (v && typeof v === "object") return Object.fromEntries(Object.entries(v).map(([k, x]) => [k, walk(x)]));
      return v;
    };
    return walk(value);
  };

  // A figure in a closed block has no width: it is drawn when the block opens, and then kept up to date.
  const plots = [...document.querySelectorAll(".plot")];
  const stale = new Set(plots);
  const isHidden = (node) => node.closest("details:not([open])") !== null;
  const draw = (nodes = plots) => {
    for (const node of nodes) {
      stale.add(node);
      if (isHidden(node)) continue;
      stale.delete(node);
      const { data, layout } = painted(figures[node.id]);
      for (const trace of data) if (trace.meta) trace.visible = Object.entries(trace.meta).every(([key, value]) => chosen[key] === value);
      Plotly.react(node, data, layout, config);
    }
  };
  draw();
  for (const node of plots) {
    const name = node.parentElement.querySelector("figcaption").textContent;
    const save = element("button", "PNG", { type: "button", class: "save", "aria-label": `Save as a picture: ${name}` });
    save.addEventListener("click", () => Plotly.downloadImage(node, { format: "png", scale: 2, filename: node.id }));
    node.before(save);
  }
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", () => draw());

  // One selection of a key ("choice") for all sections.
  for (const input of options) {
    input.addEventListener("change", () => {
      const key = keyOf(input);
      chosen[key] = input.value;
      for (const other of options) if (keyOf(other) === key) other.checked = other.value === input.value;
      draw(plots.filter((node) => figures[node.id].data.some((trace) => trace.meta && key in trace.meta)));
    });
  }

  // Blocks open for what a link leads to, and on paper.
  for (const block of document.querySelectorAll("details")) {
    block.addEventListener("toggle", () => {
      const shown = [...block.querySelectorAll(".plot")].filter((node) => !isHidden(node));
      draw(shown.filter((node) => stale.has(node)));
      for (const node of shown) Plotly.Plots.resize(node);
    });
  }
  const openTarget = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let block = target && target.closest("details"); block; block = block.parentElement.closest("details")) block.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", openTarget);
  openTarget();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const block of closed) block.open = true;
    draw([...stale]);
  });
  addEventListener("afterprint", () => {
    for (const block of closed) block.open = false;
  });

  // How it ran: the one part that differs between equal studies.
  const bytes = (n) => (n === null ? "–" : n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(2)} GiB` : `${(n / 2 ** 20).toFixed(0)} MiB`);
  const seconds = (s) => {
    if (s === null) return "–";
    if (s < 90) return `${s.toFixed(1)} s`;
    return s < 5400 ? `${Math.floor(s / 60)} min ${Math.round(s % 60)} s` : `${(s / 3600).toFixed(1)} h`;
  };
  const run = parse("run");
  const rows = document.querySelector("#stages tbody");
  const cell = (text, key) => element("td", text, key === undefined ? {} : { class: "n", "data-v": key ?? "" });
  for (const stage of run.stages) {
    const row = element("tr");
    row.append(
      cell(stage.stage), cell(String(stage.shards), stage.shards),
      cell(seconds(stage.seconds) + (stage.reused_chunks ? ` + ${stage.reused_chunks} chunks done before` : ""), stage.seconds),
      cell(bytes(stage.peak_memory_bytes), stage.peak_memory_bytes),
      cell(bytes(stage.peak_gpu_bytes), stage.peak_gpu_bytes), cell(stage.devices.join(", ") || "–"),
    );
    rows.append(row);
  }
  const facts = document.getElementById("run-facts");
  const fact = (name, values) => values.length && facts.append(element("dt", name), element("dd", values.join(", ")));
  fact("Engine of the trials", run.engines);
  fact("Hosts", run.hosts);
  fact("Versions", Object.entries(run.versions).map(([name, all]) => `${name} ${all.join(" / ")}`));

  // Tables sort by a click on a heading; numbers by data-v, text by what is shown.
  const key = (row, column) => {
    const value = row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    return value === "" ? null : Number.isNaN(Number(value)) ? value : Number(value);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = element("button", heading.textContent, { type: "button" });
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const body = table.tBodies[0];
        const sorted = [...body.rows]
          .map((row) => [key(row, column), row])
          .sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : (descending ? -1 : 1) * compare(a, b)));
        body.append(...sorted.map(([, row]) => row));
      });
    });
  }
})();
