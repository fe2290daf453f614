(() => {
  "use strict";
  const root = document.documentElement;
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;

  // showSendToCloud would offer to upload the chart; nothing here leaves the page.
  const config = {
    responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  // Plots: colours come from the style sheet, so light, dark and print agree with the page.
  const draw = () => {
    if (!window.Plotly) return;
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue("--" + name).trim();
    const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("ink") };
    const axis = {
      gridcolor: colour("grid"), linecolor: colour("quiet"), tickcolor: colour("quiet"), zeroline: false,
      showline: true, automargin: true, fixedrange: coarse, tickfont: { color: colour("quiet") },
    };
    const titled = (own = {}) => (own.title ? { ...own, title: { font: { size: 13 }, ...own.title } } : own);
    for (const plot of plots) {
      const data = plot.data.map((trace) => {
        if (!trace.meta) return trace;  // heat maps bring a scale of their own
        const tone = colour(trace.meta.colour);
        const marker = { ...trace.marker, color: tone };
        if (marker.line) marker.line = { ...marker.line, color: tone };
        return {
          ...trace, marker, line: { ...trace.line, color: tone },
          error_y: trace.error_y && { ...trace.error_y, color: tone },
        };
      });
      const layout = {
        font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 56, r: 16, t: 32, b: 52 }, hovermode: "closest", dragmode: coarse ? false : "zoom", bargap: plot.layout.bargap || 0, barmode: plot.layout.barmode,
        hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("rule"), font: { ...font } },
        showlegend: data.length > 1,
        legend: { orientation: "h", x: 0, xref: "container", y: 0, yref: "container", xanchor: "left", yanchor: "bottom",
          bgcolor: "rgba(0,0,0,0)" },
        xaxis: { ...axis, ...titled(plot.layout.xaxis) },
        yaxis: { ...axis, ...titled(plot.layout.yaxis) },
        ...(plot.layout.scene && { scene: plot.layout.scene }),  // of surfaces; plotly fails on an undefined one
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("quiet"), activecolor: colour("ink") },
      };
      const element = document.getElementById(plot.id);
      element.style.height = plot.layout.height ? plot.layout.height + "px" : "";
      const longest = Math.max(0, ...data.map((trace) => (trace.name || "").length));
      const across = Math.max(1, Math.floor(element.clientWidth / Math.max(150, 50 + 7.5 * longest)));
      const rows = Math.ceil(data.length / across);  // of the legend
      if (rows > 2) element.style.height = element.clientHeight + 20 * (rows - 2) + "px";
      Plotly.react(element, data, layout, config);
    }
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  // Print: light colours and open tables, put back afterwards.
  let opened = [];
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
    draw();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    for (const one of opened) one.open = false;
    draw();
  });

  // Images: a card opens the viewer; arrow keys move on, Escape closes it and focus returns to the card.
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const cards = [...document.querySelectorAll(".card")];
  let at = 0;
  const show = (index) => {
    at = (index + cards.length) % cards.length;
    viewer.querySelector(".inside").innerHTML = cards[at].innerHTML;
    viewer.setAttribute("aria-label", cards[at].getAttribute("aria-label").replace(/ Enlarge\.$/, ""));
  };
  cards.forEach((card, index) => card.addEventListener("click", () => { show(index); viewer.showModal(); }));
  viewer.addEventListener("close", () => cards[at].focus());
  viewer.addEventListener("click", (event) => {
    const step = event.target.dataset.step;
    if (event.target === viewer || step === "0") viewer.close();
    else if (step) show(at + Number(step));
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(at + 1);
    if (event.key === "ArrowLeft") show(at - 1);
  });
})();
