// Names of a trace's fields, made by tools/build_schema.py from samplers/run/trace.schema.json.

/** Columns of a particle's row in messages and pages. */
export const PARTICLE = ["id", "parent", "group", "score", "log_weight", "selected"];

/** Fields of a record that messages and pages carry. */
export const RECORD = ["step", "steps", "sigma", "phase", "ess", "resampled", "nfe", "seconds", "rewrites"];

/** What they carry of the whole run, where it is known. */
export const RUN = ["method", "title", "prompts", "verifier", "held_out", "status", "winners", "ledger", "warnings"];
