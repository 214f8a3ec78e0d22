// Workflows saved with nodes that were renamed or merged since: brought up to date before the graph is made.
// The table, old_nodes.json, is made by tools/build_schema.py from graph/old_nodes.py, which does the same for files.

let table = null;

/** The table, or an empty one where it cannot be had: the front end then says which nodes are missing. */
async function loaded() {
  try {
    table ??= await (await fetch(new URL("./old_nodes.json", import.meta.url))).json();
  } catch {
    return {};
  }
  return table;
}

const chosen = (row, name, value) => row.choices[name]?.[value] ?? value;

/** Whether a node is that of an old row; one that kept its id is looked at more closely. */
function isOld(node, row) {
  if (row.old !== row.new) return true;
  if ((node.inputs ?? []).some((slot) => Object.hasOwn(row.inputs, slot?.name))) return true;
  const values = node.widgets_values;
  if (!Array.isArray(values) || values.length !== row.old_widgets?.length) return false;
  const reworded = (name, place) => chosen(row, name, values[place]) !== values[place];
  return Object.keys(row.values).length > 0 || row.old_widgets.some(reworded);
}

function renewNode(node, row) {
  node.type = row.new;
  if (node.properties?.["Node name for S&R"] === row.old) node.properties["Node name for S&R"] = row.new;
  const renamed = (name) => row.inputs[name] ?? name;
  for (const slot of node.inputs ?? []) {
    slot.name = renamed(slot.name);
    if (slot.widget) slot.widget.name = slot.name;
  }
  if (Array.isArray(node.widgets_values) && row.old_widgets) {
    const named = { ...row.values };
    row.old_widgets.slice(0, node.widgets_values.length).forEach((name, place) => {
      named[renamed(name)] = chosen(row, renamed(name), node.widgets_values[place]);
    });
    node.widgets_values = row.new_widgets.filter((name) => name in named).map((name) => named[name]);
  }
  for (const [from, to] of Object.entries(row.outputs).reverse()) {
    const slots = node.outputs ?? [];
    if (!slots[from]) continue;
    while (slots.length <= to) slots.push({ name: "", type: "*", links: null });
    slots[to] = { ...slots[from], slot_index: to };
    slots[from] = { name: "", type: "*", links: null, slot_index: Number(from) };
  }
}

/** Bring the nodes of a graph and of its subgraphs up to date, in place; returns a sentence per old kind of node. */
export function renew(data, rows) {
  const told = new Set();
  for (const graph of [data, ...(data?.definitions?.subgraphs ?? [])]) {
    if (!Array.isArray(graph?.nodes)) continue;
    const old = renewNodes(graph.nodes, rows);
    for (const row of old.values()) told.add(row.sentence);
    relink(graph.links ?? [], old);
  }
  return [...told];
}

/** Renew nodes in place; returns the rows of those that were old, by id. */
function renewNodes(nodes, rows) {
  const old = new Map();
  for (const node of nodes) {
    const row = Object.hasOwn(rows, node?.type) ? rows[node.type] : null;
    if (!row || !isOld(node, row)) continue;
    old.set(node.id, row);
    renewNode(node, row);
  }
  return old;
}

/** Links that leave an old node leave its new output; both ways of writing links. */
function relink(links, old) {
  for (const link of links) {
    const [from, slot] = Array.isArray(link) ? [link[1], 2] : [link?.origin_id, "origin_slot"];
    if (old.has(from)) link[slot] = old.get(from).outputs[link[slot]] ?? link[slot];
  }
}

/** The same, with the table fetched only where a graph has nodes of ours. */
export async function renewGraph(data) {
  return renew(data, await loaded());
}
