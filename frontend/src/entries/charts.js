// Charts over time: every `<figure data-chart>` with its data in the page becomes one that the reader can explore.

import "uplot/dist/uPlot.min.css";
import { draw } from "../charts.js";

for (const figure of document.querySelectorAll("[data-chart]")) draw(figure);
