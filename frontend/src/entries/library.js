// Editors of prompts and pipelines: placeholders stand out, and the server checks the text while somebody writes it.

import { StateEffect, StateField } from "@codemirror/state";
import { Decoration, EditorView, MatchDecorator, ViewPlugin } from "@codemirror/view";
import { replaceTextArea } from "../editor.js";

const PAUSE_MS = 300;
const setFault = StateEffect.define();
const faultMark = Decoration.mark({ class: "cm-fault" });

/** The place of the fault that the server has found; it goes with the next change of the text. */
const faultField = StateField.define({
  create: () => Decoration.none,
  update: (marks, { docChanged, effects, newDoc }) => {
    for (const effect of effects) {
      if (!effect.is(setFault)) continue;
      if (effect.value === null || newDoc.length === 0) return Decoration.none;
      const from = Math.min(effect.value, newDoc.length - 1);
      return Decoration.set([faultMark.range(from, from + 1)]);
    }
    return docChanged ? Decoration.none : marks;
  },
  provide: (field) => EditorView.decorations.from(field),
});

const placeholders = new MatchDecorator({
  regexp: /\{\{|\}\}|\{[A-Za-z]\w*\}/g,
  decoration: ([text]) => (text.length > 2 ? Decoration.mark({ class: "cm-placeholder-name" }) : null),
});
const highlightPlaceholders = ViewPlugin.define(
  (view) => ({
    decorations: placeholders.createDeco(view),
    update(update) {
      this.decorations = placeholders.updateDeco(update, this.decorations);
    },
  }),
  { decorations: (plugin) => plugin.decorations },
);

for (const area of document.querySelectorAll("textarea[data-check]")) {
  const view = replaceTextArea(area, [faultField, ...(area.dataset.editor === "prompt" ? [highlightPlaceholders] : [])]);
  let timer = null;
  let asked = 0;

  const check = async () => {
    const mine = ++asked;
    const body = new URLSearchParams(new FormData(area.form));
    const response = await fetch(area.dataset.check, { method: "POST", body, headers: { accept: "text/html" } }).catch(() => null);
    if (!response?.ok || mine !== asked) return;
    const checked = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("checked");
    document.getElementById("checked").replaceWith(checked);
    // The server counts characters, and the editor counts UTF-16 code units.
    const at = checked.dataset.at === undefined ? null : [...area.value].slice(0, Number(checked.dataset.at)).join("").length;
    view.dispatch({ effects: setFault.of(at) });
  };

  area.form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => area.value && check(), PAUSE_MS);
  });
}
