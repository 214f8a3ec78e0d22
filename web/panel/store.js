// The searches that the panel knows: filled by messages, completed from the server when a tab comes late.

import { Run } from "../draw/run.js";

export class RunStore extends EventTarget {
  /** `fetcher(path)` -> Promise of parsed JSON, or null when there is nothing. */
  constructor(fetcher, kept = 4) {
    super();
    this.fetcher = fetcher;
    this.kept = kept;
    this.runs = new Map();
    this.hidden = false; // whether the server shows no searches at all
    this.question = null; // what a person is asked now, as the server describes it
  }

  /** A question was opened, here or before this tab was; the message is only a hint, the server has the pictures. */
  async asked() {
    this.question = (await this.fetcher("/testtime/question"))?.question ?? null;
    this.dispatchEvent(new CustomEvent("question"));
    return this.question;
  }

  /** A question was closed: {question, how, by}; `mine`: this window closed it. */
  closed(message, mine) {
    if (this.question?.question === message.question) this.question = null;
    this.dispatchEvent(new CustomEvent("closed", { detail: { ...message, mine } }));
  }

  start(about) {
    this.runs.set(about.run, new Run(about));
    while (this.runs.size > this.kept) this.runs.delete(this.runs.keys().next().value);
    this.changed(about.run);
  }

  async step(message) {
    let run = this.runs.get(message.run);
    if (!run || message.index > run.records.length) run = (await this.fetch(message.run)) ?? run;
    if (run?.add(message)) this.changed(message.run);
  }

  async end(message) {
    const run = this.runs.get(message.run) ?? (await this.fetch(message.run));
    if (!run) return;
    run.ended(message);
    if (message.ledger && Object.keys(message.ledger).length) run.ledger = message.ledger;
    this.changed(message.run);
  }

  /** Everything the server still knows; for a tab that was opened or reloaded. */
  async catchUp() {
    const listing = await this.fetcher("/testtime/runs");
    this.hidden = listing?.audience === "off";
    this.changed(null);
    for (const about of listing?.runs ?? []) await this.fetch(about.run);
    return listing;
  }

  async fetch(id) {
    const state = await this.fetcher(`/testtime/runs/${id}`);
    if (!state) return null;
    const { records, ...about } = state;
    const run = this.runs.get(id) ?? new Run(about);
    run.ended(about);
    for (const record of records) run.add(record);
    if (Object.keys(about.ledger ?? {}).length) run.ledger = about.ledger; // what the end of the run said
    this.runs.set(id, run);
    while (this.runs.size > this.kept) this.runs.delete(this.runs.keys().next().value);
    this.changed(id);
    return run;
  }

  changed(id) {
    this.dispatchEvent(new CustomEvent("change", { detail: id }));
  }

  get latest() {
    return [...this.runs.values()].at(-1) ?? null;
  }
}
