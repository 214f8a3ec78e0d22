// The pack's front-end extension: a sidebar tab that shows searches while they run.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { RunStore } from "./panel/store.js";
import { PanelView } from "./panel/view.js";

const TAB = "testtime.search";
const SETTING = "TestTime.Live";
const OUR_NODES = /^TestTime(Search|Replay)/;

async function getJson(path) {
  try {
    const response = await api.fetchApi(path);
    return response.ok ? await response.json() : null;
  } catch {
    return null; // the server is gone for the moment; the next message tries again
  }
}

const store = new RunStore(getJson);
let view = null;

function addStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./panel/panel.css", import.meta.url).href;
  document.head.append(link);
}

function setEnabled(enabled) {
  const body = JSON.stringify({ enabled });
  api.fetchApi("/testtime/live", { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => {});
}

function openPanel() {
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
  getNodeMenuItems(node) {
    if (!OUR_NODES.test(node?.comfyClass ?? "")) return [];
    return [{ content: "Show search panel", callback: openPanel }];
  },
  async setup() {
    addStyle();
    api.addEventListener("testtime.start", (event) => store.start(event.detail));
    api.addEventListener("testtime.step", (event) => store.step(event.detail));
    api.addEventListener("testtime.end", (event) => store.end(event.detail));
    api.addEventListener("reconnected", () => store.catchUp());
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-sitemap",
      title: "Search",
      tooltip: "Search panel: the running search as a family tree",
      type: "custom",
      render(container) {
        view?.dispose();
        view = new PanelView(store);
        container.append(view.root);
      },
      destroy() {
        view?.dispose();
        view = null;
      },
    });
    await store.catchUp();
  },
});
