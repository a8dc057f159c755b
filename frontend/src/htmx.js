// htmx as the pages use it. The page allows no inline styles and no `eval`, so neither is asked for.

import htmx from "htmx.org/dist/htmx.esm.js";

export default htmx;
