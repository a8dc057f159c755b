// Every page: partial updates by htmx, and the theme.

import "../htmx.js";
import "../theme.js";
