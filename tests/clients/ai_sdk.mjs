// Vercel's AI SDK as an application uses it: print the answer to one prompt as JSON.
// Usage: node ai_sdk.mjs URL TOKEN MODEL whole|stream PROMPT
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, streamText } from 'ai';

const [url, apiKey, model, kind, prompt] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: 'signoff', baseURL: `${url}/v1`, apiKey, includeUsage: true });
const result = (kind === 'stream' ? streamText : generateText)({ model: provider(model), prompt });
const { text, usage } = await result;
console.log(JSON.stringify({ text: await text, tokens: (await usage).totalTokens }));
