// The review desk by keyboard: keys, an editor that shows the difference, drafts that save themselves, the review lease
// of the open answer, a queue that is up to date, and the next answer read ahead. Without this script, every form of the page works by its buttons.

import "../desk/editor.js";
import "../desk/lease.js";
import "../desk/draft.js";
import "../desk/queue.js";
import "../desk/keys.js";
import "../desk/prefetch.js";
