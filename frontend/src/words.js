// A difference by words, as a reader sees it, instead of by letters.

import { Change, diff } from "@codemirror/merge";

const WORD = /\p{L}[\p{L}\p{M}\p{N}_]*|\p{N}+|\s+|[^\p{L}\p{N}\s]/gu;
const MOST_WORDS = 50_000; // each distinct one gets a code unit of its own
const LIMITS = { scanLimit: 2000, timeout: 200 };

/** Return the changes from `before` to `after`, none of which begins or ends within a word. */
export const differenceOfWords = (before, after) => {
  const codes = new Map();
  const encode = (text) => {
    const words = text.match(WORD) ?? [];
    const starts = [0];
    let encoded = "";
    for (const word of words) {
      if (!codes.has(word)) codes.set(word, String.fromCharCode(codes.size + 1));
      encoded += codes.get(word);
      starts.push(starts.at(-1) + word.length);
    }
    return { encoded, starts };
  };
  const a = encode(before);
  const b = encode(after);
  if (codes.size > MOST_WORDS) return diff(before, after, LIMITS);
  return diff(a.encoded, b.encoded, LIMITS).map(
    ({ fromA, toA, fromB, toB }) => new Change(a.starts[fromA], a.starts[toA], b.starts[fromB], b.starts[toB]),
  );
};
