// Put a changed workflow on the screen as one step for Undo.

/** The workflow as it would be saved, and the record of its changes (which holds the steps for Undo). */
export function current(app) {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker ?? null;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker); // what was done last is a step of its own
  return { workflow: (app.rootGraph ?? app.graph).serialize(), tracker };
}

/** Load ``workflow`` as a step that Undo takes back. */
async function load(app, workflow, tracker) {
  if (!tracker?.updateState) return app.loadGraphData(workflow, false, false);
  // As Undo itself does it, in the other direction: the present state becomes the step to go back to.
  tracker.redoQueue.length = 0;
  return tracker.updateState([workflow], tracker.undoQueue);
}

/** Show ``workflow`` in the place of the current one, with the same view of the same sub-graph. */
export async function show(app, workflow, tracker) {
  const { canvas } = app;
  const { scale } = canvas.ds;
  const [x, y] = canvas.ds.offset;
  const inside = canvas.graph?.isRootGraph === false ? canvas.graph.id : null;
  await load(app, workflow, tracker);
  const subgraph = inside && (app.rootGraph ?? app.graph).subgraphs?.get(inside);
  if (subgraph && canvas.graph !== subgraph) canvas.setGraph(subgraph);
  canvas.ds.scale = scale;
  canvas.ds.offset[0] = x;
  canvas.ds.offset[1] = y;
  canvas.setDirty(true, true);
}
