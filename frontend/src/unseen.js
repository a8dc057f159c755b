// Characters that an editor would not show: each has a mark with its code, and each line has the direction of its text.
// The classes are those of `core/printable.py`, which has the reasons; a test compares them.

import { Decoration, EditorView, highlightSpecialChars, ViewPlugin } from "@codemirror/view";

const UNSEEN = String.raw`\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff9-\ufffb\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}`;
const PICTURES = String.raw`\u0023\u002a\u0030-\u0039\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u2bff\u3030\u303d\u3297\u3299\u{1f000}-\u{1faff}`;
const JOINED = String.raw`\u2190-\u2bff\u{1f000}-\u{1faff}`;
const SHAPED = String.raw`\u0620-\u109f\u1780-\u18af\ua800-\uabff\ufb50-\ufdff\ufe70-\ufefc`;
const specialChars = new RegExp(
  `[${UNSEEN}]|(?<![${PICTURES}])[\\ufe0e\\ufe0f]` +
    `|(?<![${JOINED}${SHAPED}\\ufe0f])\\u200d|\\u200d(?![${JOINED}${SHAPED}])` +
    `|(?<![${SHAPED}])\\u200c|\\u200c(?![${SHAPED}])`,
  "gu",
);

const mark = (code, description) => {
  const span = document.createElement("span");
  span.className = "unseen";
  span.title = description;
  span.textContent = `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  return span;
};

/** Show each unseen character as a mark; the text stays as it is. */
export const markUnseen = highlightSpecialChars({ specialChars, render: mark });

const direction = Decoration.line({ attributes: { dir: "auto" } });
const directionsOf = (view) => {
  const lines = [];
  for (const { from, to } of view.visibleRanges) {
    for (let line = view.state.doc.lineAt(from); ; line = view.state.doc.line(line.number + 1)) {
      if (line.from !== lines.at(-1)?.from) lines.push(direction.range(line.from));
      if (line.to >= to) break;
    }
  }
  return Decoration.set(lines);
};

/** Give each line the direction of its first letter, as the rest of the page does. */
export const directionByLine = [
  EditorView.perLineTextDirection.of(true),
  ViewPlugin.define(
    (view) => ({
      decorations: directionsOf(view),
      update(update) {
        if (update.docChanged || update.viewportChanged) this.decorations = directionsOf(update.view);
      },
    }),
    { decorations: (plugin) => plugin.decorations },
  ),
];
