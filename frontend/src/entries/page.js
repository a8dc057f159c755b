// Every page: partial updates by htmx, the theme, and the countdown of what can be undone.

import "../htmx.js";
import "../theme.js";
import "../undo.js";
