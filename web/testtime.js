// The pack's front-end extension: a sidebar tab that shows searches while they run.

import { renewGraph } from "./old_nodes.js";
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { RunStore } from "./panel/store.js";
import { say, speak } from "./panel/texts.js";
import { upgradeMenu } from "./panel/upgrade.js";
import { current, show } from "./panel/workflows.js";
import { PanelView } from "./panel/view.js";

const TAB = "testtime.search";
const SETTING = "TestTime.Live";
const LOCALE = "Comfy.Locale";
const OUR_NODES = /^TestTime(Search|InfinitySearch|Rerender|Continue|PickByHand)/;
const PARTICLE_NODES = ["TestTimeRerenderParticle", "TestTimeContinueSearch"];

const clientId = () => api.clientId ?? api.initialClientId;

/** A path with the id of this window: where every person sees only their own searches, the server asks for it. */
const signed = (path) => (clientId() ? `${path}?client=${encodeURIComponent(clientId())}` : path);

async function getJson(path) {
  try {
    const response = await api.fetchApi(signed(path));
    return response.ok ? await response.json() : null;
  } catch {
    return null; // the server is gone for the moment; the next message tries again
  }
}

const store = new RunStore(getJson);
let view = null;

function post(path, message) {
  const headers = { "Content-Type": "application/json" };
  return api.fetchApi(path, { method: "POST", headers, body: JSON.stringify(message) });
}

/**
 * Tell the server that this window can show questions; it only ever waits for windows that did. Before that, the window
 * has to be connected, which takes a moment after it was opened.
 */
async function sayHello(tries = 20) {
  const client = clientId();
  try {
    const response = client ? await post("/testtime/panel", { client }) : null;
    if (response?.ok) {
      if ((await response.json()).question) await showQuestion();
      return;
    }
  } catch {
    return; // the server is gone for the moment; "reconnected" comes here again
  }
  if (tries > 0) setTimeout(() => sayHello(tries - 1), 500);
}

async function showQuestion() {
  if (!(await store.asked())) return;
  openPanel();
  const [summary, detail] = [say("asksTitle"), say("asksDetail")];
  app.extensionManager.toast?.add({ severity: "info", summary, detail, life: 8000 });
}

/** What the panel asks of its surroundings. */
const host = {
  async answer(question, message) {
    try {
      const response = await post(`/testtime/question/${question}`, { ...message, client: clientId() });
      return { ok: response.ok, body: await response.json().catch(() => null) };
    } catch {
      return { ok: false, body: { error: say("unreachable") } };
    }
  },
  clipUrl: (run, step, row) => api.apiURL(signed(`/testtime/clip/${run}/${step}/${row}`)),
  reportUrl: (run) => api.apiURL(signed(`/testtime/runs/${run}/report`)),
  useParticle(particle) {
    const takers = (nodes) => nodes.filter((node) => PARTICLE_NODES.includes(node?.comfyClass ?? node?.type));
    const selected = takers(Object.values(app.canvas?.selected_nodes ?? {}));
    const nodes = selected.length ? selected : takers(app.graph?.nodes ?? app.graph?._nodes ?? []);
    for (const node of nodes) {
      const widget = node.widgets?.find((w) => w.name === "particle");
      if (!widget) continue;
      widget.value = particle;
      widget.callback?.(particle);
    }
    app.graph?.setDirtyCanvas?.(true, true);
    return nodes.map((node) => `${node.title} (${node.id})`);
  },
};

function addStyle() {
  for (const name of ["panel", "upgrade"]) {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = new URL(`./panel/${name}.css`, import.meta.url).href;
    document.head.append(link);
  }
}

function setEnabled(enabled) {
  post("/testtime/live", { enabled }).catch(() => {});
}

async function answerOf(response) {
  const body = await response.json().catch(() => null);
  return body ?? { error: `${response.status} ${response.statusText}` };
}

/** What the dialog of "Search with this sampler" asks of its surroundings. */
const upgrades = {
  async offered() {
    try {
      return await answerOf(await api.fetchApi("/testtime/upgrade"));
    } catch {
      return { error: say("unreachable") };
    }
  },
  async change(message) {
    const { workflow, tracker } = current(app);
    try {
      const answer = await answerOf(await post("/testtime/upgrade", { ...message, workflow }));
      if (!answer.error) await show(app, answer.workflow, tracker);
      return answer;
    } catch {
      return { error: say("unreachable") };
    }
  },
  tell: (severity, summary, detail) => app.extensionManager.toast?.add({ severity, summary, detail, life: 8000 }),
};

/** Entries in the menu of a node. */
const menuOf = (node, type) => [
  ...(OUR_NODES.test(type ?? "") ? [{ content: say("showPanel"), callback: openPanel }] : []),
  ...upgradeMenu(node, upgrades),
];

function openPanel() {
  // The command toggles: a tab that is open already must be left alone, also one that is about to appear.
  const active = app.extensionManager.sidebarTab?.activeSidebarTabId;
  if (active === TAB || (active === undefined && view)) return;
  app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${TAB}`);
}

app.registerExtension({
  name: "TestTimeScaling.Panel",
  settings: [
    {
      id: SETTING,
      category: ["Test-Time Scaling", "Live panel", "Show searches while they run"],
      name: "Show searches while they run",
      tooltip: "Sends the steps of a search and small previews to the Search panel.",
      type: "boolean",
      defaultValue: true,
      onChange: setEnabled,
    },
  ],
  getNodeMenuItems: (node) => menuOf(node, node?.comfyClass),
  beforeRegisterNodeDef(nodeType, { name }) {
    // Front ends before 1.29, such as the one that ComfyUI 0.3.64 pins, do not ask extensions for menu entries.
    if (app.collectNodeMenuItems) return;
    const before = nodeType.prototype.getExtraMenuOptions;
    nodeType.prototype.getExtraMenuOptions = function (canvas, options) {
      const more = before?.call(this, canvas, options);
      options.push(...menuOf(this, name));
      return more;
    };
  },
  async beforeConfigureGraph(data) {
    const told = await renewGraph(data);
    if (!told.length) return;
    const message = { severity: "info", summary: say("tab"), detail: told.join("\n"), life: 15000 };
    app.extensionManager.toast?.add(message);
  },
  async setup() {
    addStyle();
    speak(app.extensionManager.setting.get(LOCALE));
    api.addEventListener("testtime.start", (event) => store.start(event.detail));
    api.addEventListener("testtime.step", (event) => store.step(event.detail));
    api.addEventListener("testtime.end", (event) => store.end(event.detail));
    api.addEventListener("testtime.ask", () => showQuestion());
    api.addEventListener("testtime.answered", (event) => store.closed(event.detail, event.detail.by === api.clientId));
    api.addEventListener("reconnected", () => {
      store.catchUp();
      sayHello();
    });
    api.addEventListener("execution_start", () => sayHello());
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-sitemap",
      title: say("tab"),
      tooltip: say("tabTooltip"),
      type: "custom",
      render(container) {
        speak(app.extensionManager.setting.get(LOCALE));
        view?.dispose();
        view = new PanelView(store, host);
        container.append(view.root);
      },
      destroy() {
        view?.dispose();
        view = null;
      },
    });
    sayHello();
    await store.catchUp();
  },
});
