"use strict";
// Draws each figure when it comes near the view, and all of them before the page is printed.
(() => {
  const figures = [...document.querySelectorAll("figure[data-figure]")];
  const config = { displaylogo: false, responsive: true, typesetMath: false, showSendToCloud: false, plotlyServerURL: "" };

  function draw(figure) {
    if (figure.dataset.drawn) return;
    figure.dataset.drawn = "started";
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot");
    Plotly.newPlot(plot, spec.data, spec.layout, config).then(() => {
      figure.dataset.drawn = Math.round(performance.now());  // milliseconds since the page was asked for
      if (spec.layout.scene) keepPictureForPrint(plot);
    });
  }

  // Browsers print a WebGL canvas blank.
  function keepPictureForPrint(plot) {
    Plotly.toImage(plot, { format: "png", width: plot.clientWidth, height: plot.clientHeight }).then((source) => {
      const picture = document.createElement("img");
      picture.className = "printed";
      picture.alt = "";
      picture.src = source;
      plot.after(picture);
      plot.classList.add("has-picture");
    });
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        near.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "200px" });
  figures.forEach((figure) => near.observe(figure));
  window.addEventListener("beforeprint", () => figures.forEach(draw));
})();
