// "Search with this sampler" and "Back to KSampler": entries in the menu of a node, a dialog, one step for Undo.
//
// What becomes of the workflow is decided by the server (graph/upgrade.py); here it is asked and put on the screen.

import { element } from "../draw/dom.js";
import { say } from "./texts.js";

const SAMPLERS = ["KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"];
const SEARCHES = ["TESTTIME_SEARCH", "TESTTIME_VERIFIER"];
const RECORD = "testtime_replaced";
const REMEMBERED = "TestTime.Upgrade";

/** Whether a node is a search: it takes a method and a verifier, or has taken a sampler's place. */
export function isSearch(node) {
  if (node?.properties?.[RECORD]) return true;
  const kinds = (node?.inputs ?? []).map((input) => input.type);
  const makes = (node?.outputs ?? [])[0]?.type;
  return SEARCHES.every((kind) => kinds.includes(kind)) && (makes === "LATENT" || makes === "SAMPLER");
}

/** Entries in the menu of a node; none for most. */
export function upgradeMenu(node, host) {
  const kind = node?.comfyClass ?? node?.type;
  if (isSearch(node)) return [{ content: say("backToSampler"), callback: () => goBack(node, host) }];
  if (SAMPLERS.includes(kind)) return [{ content: say("searchWith"), callback: () => openDialog(node, host) }];
  return [];
}

/** How the server finds a node: the sub-graph that it is saved in, and its own id. */
const placeOf = (node) => `${node.graph?.isRootGraph === false ? node.graph.id : ""}/${node.id}`;

async function goBack(node, host) {
  const answer = await host.change({ node: placeOf(node), back: true });
  host.tell(answer.error ? "error" : "success", say("backToSampler"), answer.error ?? answer.notes.join(" "));
}

async function openDialog(node, host) {
  const offered = await host.offered();
  if (offered.error) {
    host.tell("error", say("searchWith"), offered.error);
    return;
  }
  new Dialog(node, offered, host).open();
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(REMEMBERED)) ?? {};
  } catch {
    return {};
  }
}

class Dialog {
  constructor(node, offered, host) {
    this.node = node;
    this.offered = offered;
    this.host = host;
    this.root = element("dialog", "testtime-upgrade");
    const form = element("form");
    form.method = "dialog";
    const title = element("h2", "", say("searchWith"));
    title.id = "testtime-upgrade-title";
    this.root.setAttribute("aria-labelledby", title.id);
    this.method = this.choice(say("method"), offered.methods);
    this.number = this.field(say("howMany"), { type: "number", min: 1, max: 1024, step: 1 });
    this.seconds = this.field(say("atMostSeconds"), { type: "number", min: 0, step: 1, value: 0 });
    this.seconds.parentElement.hidden = !offered.budget;
    this.verifier = this.choice(say("verifier"), offered.verifiers);
    this.missing = element("p", "testtime-missing");
    this.missing.setAttribute("aria-live", "polite");
    this.failed = element("p", "testtime-failed");
    this.failed.setAttribute("role", "alert");
    this.go = element("button", "testtime-go", say("replace"));
    this.go.type = "submit";
    const cancel = element("button", "", say("cancel"));
    cancel.type = "button";
    cancel.addEventListener("click", () => this.root.close());
    const buttons = element("div", "testtime-buttons");
    buttons.append(cancel, this.go);
    const fields = [this.method, this.number, this.seconds, this.verifier].map((input) => input.parentElement);
    form.append(title, ...fields, this.missing, this.failed, buttons);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.replace();
    });
    this.method.addEventListener("change", () => this.methodChosen());
    this.verifier.addEventListener("change", () => this.verifierChosen());
    this.root.addEventListener("close", () => this.root.remove());
    this.root.addEventListener("keydown", (event) => event.stopPropagation()); // no shortcuts of the graph
    this.root.append(form);
  }

  open() {
    const last = remembered();
    this.select(this.method, last.method);
    this.select(this.verifier, last.verifier);
    this.methodChosen();
    if (last.number && last.method === this.method.value) this.number.value = last.number;
    this.verifierChosen();
    document.body.append(this.root);
    this.root.showModal();
  }

  choice(label, choices) {
    const select = element("select");
    for (const { kind, title, missing } of choices) {
      const option = element("option", "", missing ? say("titleMissing", { title }) : title);
      option.value = kind;
      select.append(option);
    }
    this.labelled(label, select);
    return select;
  }

  field(label, attributes) {
    const input = Object.assign(element("input"), attributes);
    this.labelled(label, input);
    return input;
  }

  labelled(text, input) {
    const label = element("label");
    label.append(element("span", "", text), input);
  }

  select(list, value) {
    if ([...list.options].some((option) => option.value === value)) list.value = value;
  }

  chosen(list, choices) {
    return choices.find(({ kind }) => kind === list.value);
  }

  methodChosen() {
    const method = this.chosen(this.method, this.offered.methods);
    this.number.parentElement.hidden = !method?.number;
    this.number.value = method?.default ?? 4;
  }

  verifierChosen() {
    this.missing.textContent = this.chosen(this.verifier, this.offered.verifiers)?.missing ?? "";
  }

  async replace() {
    const number = this.number.parentElement.hidden ? null : Number(this.number.value);
    const wanted = { method: this.method.value, verifier: this.verifier.value, number };
    this.go.disabled = true;
    this.failed.textContent = "";
    const seconds = Number(this.seconds.value) || 0;
    const answer = await this.host.change({ node: placeOf(this.node), ...wanted, seconds });
    this.go.disabled = false;
    if (answer.error) {
      this.failed.textContent = answer.error;
      return;
    }
    localStorage.setItem(REMEMBERED, JSON.stringify(wanted));
    this.root.close();
    const notes = answer.notes.join(" ") || say("replaced");
    this.host.tell(answer.prompt_found ? "success" : "warn", say("searchWith"), notes);
  }
}
