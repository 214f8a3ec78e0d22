"""After a search: trace files, rendering a particle again, going on from one."""
