// Runs of searches as the panel knows them: built from messages, completed from the server when a tab comes late.

/** Characters of previews that a run keeps here; beyond that, its oldest ones go. */
export const THUMB_CHARACTERS = 24e6;

/** One particle of a run: {id, parent, group, score, weight, selected, step, column, thumb, children}. */

export class Run {
  constructor(about) {
    this.about = about;
    this.id = about.run;
    this.status = about.status ?? "running";
    this.warnings = about.warnings ?? [];
    this.ledger = about.ledger ?? {};
    this.records = [];
    this.particles = new Map();
    this.pictured = []; // records with previews, oldest first, and how much they hold
    this.characters = 0;
    this.low = Infinity;
    this.high = -Infinity;
  }

  /** Takes in a record; records that are known already are ignored. Returns whether it was new. */
  add(record) {
    if (this.records.some((known) => known.index === record.index)) return false;
    this.records.push(record);
    this.records.sort((a, b) => a.index - b.index);
    if (record.ledger && Object.keys(record.ledger).length) this.ledger = record.ledger;
    record.rows = record.particles.map(([id, parent, group, score, weight, selected], row) => {
      const thumb = record.thumbs?.[row] ?? null;
      const prompt = record.prompts?.[row] ?? null; // a rewritten one
      const particle = { id, parent, group, score, weight, selected: !!selected, record, thumb, prompt, children: 0 };
      this.particles.set(id, particle);
      const mother = this.particles.get(parent);
      if (mother) mother.children += 1;
      if (score !== null) {
        this.low = Math.min(this.low, score);
        this.high = Math.max(this.high, score);
      }
      return particle;
    });
    this.limit(record);
    return true;
  }

  /** Counts the previews of a record, which its particles keep from now on, and gives up the oldest of too many. */
  limit(record) {
    const size = (record.thumbs ?? []).reduce((sum, thumb) => sum + (thumb?.length ?? 0), 0);
    record.thumbs = null;
    if (!size) return;
    this.pictured.push({ record, size });
    this.characters += size;
    while (this.characters > THUMB_CHARACTERS && this.pictured.length > 1) {
      const oldest = this.pictured.shift();
      this.characters -= oldest.size;
      for (const particle of oldest.record.rows) particle.thumb = null;
    }
  }

  /** Place of a score between the worst and the best of the run, 0..1; null without a score. */
  share(score) {
    if (score === null || score === undefined) return null;
    return this.high > this.low ? (score - this.low) / (this.high - this.low) : 1;
  }

  /** A particle and all it descends from, youngest first. */
  path(id) {
    const found = [];
    for (let at = this.particles.get(id); at; at = this.particles.get(at.parent)) found.push(at);
    return found;
  }

  /** The best particle of the newest record that has scores, or null. */
  leader() {
    for (const record of [...this.records].reverse()) {
      const scored = record.rows.filter((p) => p.score !== null);
      if (scored.length) return scored.reduce((a, b) => (b.score > a.score ? b : a));
    }
    return null;
  }

  /** [[nfe, best score so far]], one entry per record with scores. */
  bestSoFar() {
    const curve = [];
    let best = -Infinity;
    for (const record of this.records) {
      const scores = record.rows.map((p) => p.score).filter((s) => s !== null);
      if (!scores.length) continue;
      best = Math.max(best, ...scores);
      curve.push([record.nfe, best]);
    }
    return curve;
  }

  get progress() {
    const last = this.records[this.records.length - 1];
    return last ? Math.min(1, last.step / Math.max(last.steps, 1)) : 0;
  }
}

export class RunStore extends EventTarget {
  /** `fetcher(path)` -> Promise of parsed JSON, or null when there is nothing. */
  constructor(fetcher, kept = 4) {
    super();
    this.fetcher = fetcher;
    this.kept = kept;
    this.runs = new Map();
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
    Object.assign(run, { status: message.status, warnings: message.warnings ?? [] });
    if (message.ledger && Object.keys(message.ledger).length) run.ledger = message.ledger;
    this.changed(message.run);
  }

  /** Everything the server still knows; for a tab that was opened or reloaded. */
  async catchUp() {
    const listing = await this.fetcher("/testtime/runs");
    for (const about of listing?.runs ?? []) await this.fetch(about.run);
    return listing;
  }

  async fetch(id) {
    const state = await this.fetcher(`/testtime/runs/${id}`);
    if (!state) return null;
    const { records, ...about } = state;
    const run = this.runs.get(id) ?? new Run(about);
    Object.assign(run, { status: about.status, warnings: about.warnings ?? [] });
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
