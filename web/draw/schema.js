// The columns of a particle's row in messages and pages.

export const PARTICLE = ["id", "parent", "group", "score", "log_weight", "selected"];
