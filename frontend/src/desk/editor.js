// The answer in an editor that always shows its difference to the model's answer, instead of a text area beside it.

import { unifiedMergeView } from "@codemirror/merge";
import { replaceTextArea } from "../editor.js";
import { differenceOfWords } from "../words.js";
import { answer, find } from "./page.js";

const LONGEST = 300_000; // characters; a longer text stays in the text area

const original = find("original-text");
if (answer && original && answer.value.length + original.value.length < LONGEST) {
  const view = replaceTextArea(answer, [
    unifiedMergeView({
      original: original.value,
      mergeControls: false,
      gutter: false,
      allowInlineDiffs: true,
      diffConfig: { override: differenceOfWords },
    }),
  ]);
  view.dom.classList.add("merge-text");
  find("merge").classList.add("unified");
}
