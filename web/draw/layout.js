// Where everything of a family tree goes, in shares of its box: `time` from the first step to the last, `lane` across.

const GROUP_GAP = 0.8; // lanes left free between the images of a batch

/**
 * [{records, fresh}] of every column. Records of the same step share one: methods that try children one at a time
 * write many of them. Where that would put a child beside or before its parent (a search that goes back in time), every
 * record is a column of its own. A record that only lists known particles again makes none.
 */
export function columnsOf(run) {
  const stepOf = new Map();
  let forward = true;
  for (const { step, fresh } of run.records) {
    forward &&= fresh.every((p) => (stepOf.get(p.parent) ?? -1) < step);
    for (const p of fresh) stepOf.set(p.id, step);
  }
  const columns = new Map();
  run.records.forEach((record, number) => {
    if (!record.fresh.length) return;
    const key = forward ? record.step : number;
    if (!columns.has(key)) columns.set(key, { records: [], fresh: [] });
    columns.get(key).records.push(record);
    columns.get(key).fresh.push(...record.fresh);
  });
  return [...columns.keys()].sort((a, b) => a - b).map((key) => columns.get(key));
}

/** Shares 0..1 of a column's particles, evenly spaced with a gap where the image changes; 0.5 for a single one. */
export function lanes(groups) {
  let at = 0;
  const found = groups.map((group, k) => (at += k === 0 ? 0 : group === groups[k - 1] ? 1 : 1 + GROUP_GAP));
  return at ? found.map((value) => value / at) : groups.map(() => 0.5);
}

/**
 * {places: Map id -> [time, lane], edges: [[parent, child]], columns: [{time, step, resampled}], crowd,
 * won: Set of ids on the paths to the heads, alive: Set of ids with a descendant in the last record}.
 *
 * Children stand in the order of their parents, so that lines of different families do not cross.
 */
export function layout(run) {
  const columns = columnsOf(run);
  const [places, order, edges] = [new Map(), new Map(), []];
  columns.forEach((column, number) => {
    column.time = columns.length > 1 ? number / (columns.length - 1) : 0.5;
    const rank = (p) => order.get(p.parent) ?? -1;
    const sorted = [...column.fresh].sort((a, b) => a.group - b.group || rank(a) - rank(b) || a.id - b.id);
    const shares = lanes(sorted.map((p) => p.group));
    sorted.forEach((p, k) => {
      places.set(p.id, [column.time, shares[k]]);
      order.set(p.id, shares[k]);
      if (places.has(p.parent)) edges.push([p.parent, p.id]);
    });
  });
  const heads = run.heads();
  const last = run.records.at(-1)?.rows ?? [];
  return {
    places,
    edges,
    columns: columns.map(({ time, records }) => ({
      time,
      step: records[0].step,
      resampled: records.some((r) => r.resampled?.some(Boolean)),
    })),
    crowd: Math.max(1, ...columns.map((column) => column.fresh.length)),
    won: ancestors(run, heads),
    alive: ancestors(run, [...last, ...heads]),
  };
}

/** Ids of `particles` and of everything they descend from. */
function ancestors(run, particles) {
  const found = new Set();
  for (const { id } of particles) {
    for (let at = run.particles.get(id); at && !found.has(at.id); at = run.particles.get(at.parent)) found.add(at.id);
  }
  return found;
}

/** Of evenly spaced columns `distance` pixels apart every 1st, 2nd, 5th, 10th, ... gets a number, `room` apart. */
export function stride(distance, room) {
  for (let power = 1; ; power *= 10) {
    for (const step of [1, 2, 5]) if (step * power * distance >= room || step * power > 1e6) return step * power;
  }
}

/** About `count` round numbers in [low, high]. */
export function ticks(low, high, count = 4) {
  const raw = Math.max(high - low, 1e-12) / count;
  const magnitude = 10 ** Math.floor(Math.log10(raw));
  const step = magnitude * [1, 2, 5, 10].find((m) => m * magnitude >= raw * (1 - 1e-9));
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) found.push(+v.toFixed(10) + 0);
  return found;
}
