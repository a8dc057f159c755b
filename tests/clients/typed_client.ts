// A program that uses the generated types; `WRONG` marks what must not compile.
import type { components, paths } from "./signoff";

type Job = components["schemas"]["JobAnswer"];
type NewJob = paths["/api/jobs"]["post"]["requestBody"]["content"]["application/json"];
type Held = paths["/api/reviews/next"]["post"]["responses"]["200"]["content"]["application/json"];

export const order: NewJob = { body: { messages: [] }, target: "echo" };
export const isOver = (job: Job): boolean => job.status === "success" || job.status === "fail";
export const question = (held: Held): string => held.transcript.map((part) => part.text).join("\n");
// @ts-expect-error WRONG: a job has no such status
export const isLost = (job: Job): boolean => job.status === "lost";
// @ts-expect-error WRONG: a job needs a body
export const empty: NewJob = { target: "echo" };
