// Editors over the text areas of prompts, pipelines and other texts: every `<textarea data-editor="json|text">`.

import { replaceTextArea } from "../editor.js";

for (const area of document.querySelectorAll("textarea[data-editor]")) replaceTextArea(area);
