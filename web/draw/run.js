// One search as all drawings know it: built record by record, from messages of the server or from the data of a page.

import { PARTICLE } from "./schema.js";

/** Characters of previews that a run keeps; beyond that, its oldest ones go. */
export const THUMB_CHARACTERS = 24e6;

/**
 * `about`: what is known from the start ({run, title, method, prompts, ...}).
 *
 * A particle is {id, parent, group, score, log_weight, selected, record, thumb, prompt}; a record keeps what the server
 * said and adds `rows` (its particles, as they were then) and `fresh` (those that no earlier record had).
 */
export class Run {
  constructor(about) {
    this.about = about;
    this.id = about.run;
    this.ended(about);
    this.ledger = about.ledger ?? {};
    this.records = [];
    this.particles = new Map();
    this.pictured = []; // records with previews, oldest first, and how much they hold
    this.characters = 0;
    this.low = Infinity;
    this.high = -Infinity;
  }

  /** A finished run from the data of a page: what the server tells of a run, records included. */
  static from({ records, ...about }) {
    const run = new Run(about);
    records.forEach((record) => run.add(record));
    return run;
  }

  /** What the end of a run says; of one that has not ended, that it runs. */
  ended({ status = "running", warnings = [], winners = [] }) {
    Object.assign(this, { status, warnings, winners });
  }

  /** Takes in a record; records that are known already are ignored. Returns whether it was new. */
  add(record) {
    if (this.records.some((known) => known.index === record.index)) return false;
    this.records.push(record);
    this.records.sort((a, b) => a.index - b.index);
    if (record.ledger && Object.keys(record.ledger).length) this.ledger = record.ledger;
    record.fresh = [];
    record.rows = record.particles.map((values, row) => this.take(record, values, row));
    this.limit(record);
    return true;
  }

  /** One row of a record. A particle that is listed again keeps its place, and more is known of it from then on. */
  take(record, values, row) {
    const entry = Object.fromEntries(PARTICLE.map((name, place) => [name, values[place]]));
    entry.thumb = record.thumbs?.[row] ?? null;
    entry.prompt = record.prompts?.[row] ?? null; // a rewritten one
    entry.clip = record.clips?.[row] ? [record.index, row] : null; // where the server has it moving
    entry.record = record;
    if (entry.score !== null) {
      this.low = Math.min(this.low, entry.score);
      this.high = Math.max(this.high, entry.score);
    }
    const known = this.particles.get(entry.id);
    if (known) {
      const names = ["score", "thumb", "prompt", "clip"];
      const later = Object.fromEntries(names.map((name) => [name, entry[name] ?? known[name]]));
      this.particles.set(entry.id, { ...known, ...later });
    } else {
      this.particles.set(entry.id, entry);
      record.fresh.push(entry);
    }
    return entry;
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
      for (const row of oldest.record.rows) row.thumb = this.particles.get(row.id).thumb = null;
    }
  }

  /** Place of a score between the worst and the best of the run, 0..1; null without a score. */
  share(score) {
    if (score === null || score === undefined) return null;
    return this.high > this.low ? (score - this.low) / (this.high - this.low) : 0.5;
  }

  /** A particle and all it descends from, youngest first. */
  path(id) {
    const found = [];
    for (let at = this.particles.get(id); at; at = this.particles.get(at.parent)) found.push(at);
    return found;
  }

  /** The winners that the server named; while the search runs, the best of every image in the newest scored record. */
  heads() {
    const named = this.winners.map((id) => this.particles.get(id)).filter(Boolean);
    if (named.length) return named;
    const record = this.records.findLast((r) => r.rows.some((p) => p.score !== null));
    const best = new Map();
    for (const p of record?.rows ?? []) {
      if (p.score !== null && !(best.get(p.group)?.score >= p.score)) best.set(p.group, p);
    }
    return [...best.values()].sort((a, b) => a.group - b.group).map((p) => this.particles.get(p.id));
  }

  /** The head with the best score, or null. */
  leader() {
    return this.heads().reduce((a, b) => (a && (a.score ?? -Infinity) >= (b.score ?? -Infinity) ? a : b), null);
  }

  /** Per image [[nfe, best score so far]], one point per record in which the image was scored. */
  bestSoFar() {
    const curves = new Map();
    for (const record of this.records) {
      const found = new Map();
      for (const { group, score } of record.rows) {
        if (score !== null) found.set(group, Math.max(score, found.get(group) ?? score));
      }
      for (const [group, score] of found) {
        const curve = curves.get(group) ?? [];
        curves.set(group, curve);
        curve.push([record.nfe, Math.max(score, curve.at(-1)?.[1] ?? score)]);
      }
    }
    return curves;
  }

  /** [[nfe, best score of the population at that step]]. */
  bestNow() {
    const scored = this.records.map(({ nfe, rows }) => [nfe, rows.map((p) => p.score).filter((s) => s !== null)]);
    return scored.filter(([, scores]) => scores.length).map(([nfe, scores]) => [nfe, Math.max(...scores)]);
  }

  /**
   * [{nfe, score, selected}] of every scored particle, in order. What was not paid for is not shown again: a particle
   * that is listed a second time, or one with its parent's score after no further passes.
   */
  scored() {
    const spent = new Map();
    const points = [];
    for (const { nfe, rows } of this.records) {
      for (const { id, parent, score, selected } of rows) {
        if (score === null || spent.has(id)) continue;
        spent.set(id, [nfe, score]);
        const [before, same] = spent.get(parent) ?? [];
        if (before !== nfe || same !== score) points.push({ nfe, score, selected: !!selected });
      }
    }
    return points;
  }

  get progress() {
    const last = this.records.at(-1);
    return last ? Math.min(1, last.step / Math.max(last.steps, 1)) : 0;
  }
}
