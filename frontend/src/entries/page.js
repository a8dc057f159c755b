// Every page: partial updates by htmx, parts that are live, forms that are sent once, the theme, and the countdown of
// what can be undone.

import "../htmx.js";
import "../live.js";
import "../once.js";
import "../theme.js";
import "../undo.js";
