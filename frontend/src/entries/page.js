// Every page: partial updates by htmx, parts that are live, the theme, and the countdown of what can be undone.

import "../htmx.js";
import "../live.js";
import "../theme.js";
import "../undo.js";
