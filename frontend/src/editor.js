// CodeMirror over a text area: the area stays in the form, hidden, and always has the text of the editor.

import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { json } from "@codemirror/lang-json";
import { HighlightStyle, syntaxHighlighting } from "@codemirror/language";
import { EditorState } from "@codemirror/state";
import { EditorView, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { directionByLine, markUnseen } from "./unseen.js";

const nonce = document.querySelector("meta[name=style-nonce]")?.nonce ?? "";

// Colours are the tokens of the pages, so that both themes work.
const highlight = HighlightStyle.define([
  { tag: tags.propertyName, color: "var(--accent)" },
  { tag: tags.string, color: "var(--ok)" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--hold)" },
]);

const theme = EditorView.theme({
  "&": { backgroundColor: "transparent", color: "var(--text)", fontSize: "inherit" },
  "&.cm-focused": { outline: "none" },
  ".cm-content": { fontFamily: "inherit", padding: "0.25rem 0", caretColor: "var(--accent)" },
  ".cm-line": { padding: "0 0.25rem" },
  ".cm-scroller": { fontFamily: "inherit", lineHeight: "inherit", maxHeight: "60vh", overflow: "auto" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground": { background: "var(--accent-wash)" },
  ".cm-gutters": { backgroundColor: "transparent", color: "var(--text-3)", border: "none" },
  ".cm-cursor": { borderLeftColor: "var(--accent)" },
});

/** Replace `area` by an editor with these further extensions, and return its view. */
export const replaceTextArea = (area, extensions = []) => {
  const isJson = area.dataset.editor === "json";
  const label = area.labels?.[0];
  const view = new EditorView({
    state: EditorState.create({
      doc: area.value,
      extensions: [
        EditorView.cspNonce.of(nonce),
        history(),
        // Tab leaves the field, as in every other field of the page; Ctrl+Enter is the page's.
        keymap.of([...defaultKeymap.filter(({ key }) => key !== "Mod-Enter"), ...historyKeymap]),
        EditorView.lineWrapping,
        markUnseen,
        ...(isJson ? [] : [directionByLine]), // code reads from the left, whatever its strings say
        EditorView.contentAttributes.of({
          "aria-label": label?.textContent.trim() ?? area.getAttribute("aria-label") ?? "",
          spellcheck: String(!isJson),
        }),
        EditorView.updateListener.of((update) => {
          if (!update.docChanged) return;
          area.value = update.state.doc.toString();
          area.dispatchEvent(new Event("input", { bubbles: true }));
        }),
        ...(isJson ? [json(), syntaxHighlighting(highlight), lineNumbers()] : []), // the server names lines
        theme,
        ...extensions,
      ],
    }),
  });
  view.dom.classList.add("code-editor", ...(area.classList.contains("mono") ? ["mono", "tall"] : []));
  area.after(view.dom);
  area.hidden = true;
  area.required = false; // a browser cannot point at a hidden field; the server says what is missing
  label?.addEventListener("click", () => view.focus());
  return view;
};
