// Decisions on the page of a review: by mouse and by keyboard, written by the server before they are shown.
"use strict";
(() => {
  const { labels, nameOf, shortOf, grouped } = window.fcdeployPage;
  if (String(grouped) !== document.body.dataset.grouped) { location.reload(); return; } // regrouped while it was loaded
  const byId = (id) => document.getElementById(id);
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const status = byId("status");
  let revision = -1;
  let decisions = [];
  let earlier = []; // the decisions before the last answer of the server
  let sending = null; // whether what was sent last went well, until it is known

  const TEXTS = {
    same: "same person", different: "different persons", "not-a-face": "not a face", name: "named", split: "split off",
    move: "moved", merge: "merged",
  };
  const say = (text, wrong) => {
    status.textContent = text;
    status.classList.toggle("warn", Boolean(wrong));
  };
  const told = (one, name = shortOf) => `${TEXTS[one.kind]}${one.name ? ` “${one.name}”` : ""}: ${one.faces.length > 1 ? "faces" : "face"} ${one.faces.map((face) => name(face)).join(", ")}`;

  // Everything that decisions say, shown anew: on pairs, faces and clusters, and in the log.
  const render = () => {
    for (const node of all("[data-said]")) node.removeAttribute("data-said");
    for (const node of all("[data-decided]")) node.removeAttribute("data-decided");
    for (const node of all(".said")) node.textContent = "";
    const pairs = new Map();
    const faces = new Map();
    const clusters = new Map();
    const note = (cluster, text) => { if (cluster >= 0) clusters.set(cluster, [...(clusters.get(cluster) || []), text]); };
    for (const one of decisions) {
      const [a, b] = one.faces;
      if (one.kind === "same" || one.kind === "different") pairs.set(`${Math.min(a, b)} ${Math.max(a, b)}`, one.kind);
      else if (one.kind !== "name" && one.revision <= grouped) continue; // the clusters here are made of it already
      else if (one.kind === "merge") {
        note(labels[a], `merged with cluster ${labels[b]}`);
        note(labels[b], `merged with cluster ${labels[a]}`);
      } else if (one.kind === "name") note(labels[a], `named “${one.name}”`);
      else for (const face of one.faces) { faces.set(face, TEXTS[one.kind]); note(labels[face], `face ${shortOf(face)} ${TEXTS[one.kind]}`); }
    }
    for (const pair of all(".pair")) {
      const a = Number(pair.dataset.a), b = Number(pair.dataset.b);
      const kind = pairs.get(`${Math.min(a, b)} ${Math.max(a, b)}`);
      if (kind) {
        pair.dataset.said = kind;
        pair.closest(".suspect")?.setAttribute("data-decided", "");
      }
      for (const button of all("[data-answer]", pair)) button.setAttribute("aria-pressed", String(kind === button.dataset.answer));
    }
    for (const item of all(".tile")) {
      const text = faces.get(Number(item.dataset.face));
      if (text) item.dataset.said = text;
    }
    for (const card of all(".card")) {
      const texts = clusters.get(Number(card.dataset.cluster));
      if (!texts) continue;
      card.setAttribute("data-decided", "");
      const line = card.querySelector(".said");
      if (line) line.textContent = texts.length > 3 ? `${texts.slice(0, 3).join("; ")} and ${texts.length - 3} more` : texts.join("; ");
    }
    const log = byId("log");
    log.replaceChildren(...decisions.slice(-500).reverse().map((one) => {
      const item = document.createElement("li");
      item.textContent = told(one, nameOf);
      return item;
    }));
    byId("undo").disabled = !decisions.length;
    filter();
  };
  const filter = () => {
    const wanted = byId("undecided").value;
    for (const node of all(".card, section > .pairs > .pair")) {
      const decided = node.hasAttribute("data-decided") || node.hasAttribute("data-said");
      node.hidden = (wanted === "open" && decided) || (wanted === "decided" && !decided);
    }
  };
  // Clusters that were regrouped, here or in another tab, have other numbers: the page is then loaded again.
  const take = (state) => {
    if (state.grouped !== grouped) { location.reload(); return; }
    revision = state.revision;
    decisions = state.decisions;
    render();
  };
  const counted = () => `${decisions.length} ${decisions.length === 1 ? "decision" : "decisions"}${revision > grouped && grouped ? ", not all of them in the clusters shown" : ""}.`;

  // One after the other; what was waiting behind one that went wrong is not sent.
  const send = async (path, body) => {
    const before = sending;
    const mine = (async () => (before === null || (await before)) && post(path, body))();
    sending = mine;
    const well = await mine;
    if (sending === mine) sending = null;
    return well;
  };
  const post = async (path, body) => {
    try {
      const answer = await fetch(path, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, revision, grouped }),
      });
      const found = await answer.json();
      earlier = decisions;
      take(found);
      if (answer.ok) return true;
      say(`Not done: ${found.error}`, true);
    } catch {
      say("Not done: the review has ended, or does not answer. Start it again and reload; what was decided is kept.", true);
    }
    return false;
  };
  const decide = async (body) => {
    if (!(await send("decide", body))) return false;
    unchoose(body.faces || []);
    say(`Saved: ${told(decisions[decisions.length - 1])}. ${counted()}`);
    return true;
  };
  const undo = async () => {
    if (!(await send("undo", {}))) return;
    const last = earlier[earlier.length - 1];
    if (last) say(`Taken back: ${told(last)}. ${counted()}`);
  };

  const regroup = async () => {
    say("Regrouping…");
    if (await send("regroup", {})) say(`Clusters are regrouped. ${counted()}`); // or the page is loaded again
  };

  // What is chosen, and where the keyboard is.
  const chosen = () => all(".tile[aria-selected=true]");
  const unchoose = (faces) => {
    for (const item of chosen()) if (faces.includes(Number(item.dataset.face))) item.setAttribute("aria-selected", "false");
  };
  const toggle = (item) => item.setAttribute("aria-selected", String(item.getAttribute("aria-selected") !== "true"));
  const stops = () => all("#found .card, section > .cards > .card, .links .pair, section > .pairs > .pair").filter((node) => node.offsetParent !== null);
  const current = () => document.activeElement?.closest(".pair, .card");
  const step = (by) => {
    const list = stops();
    if (!list.length) return;
    const here = current();
    let at = here ? list.indexOf(here) : -1;
    if (here && at < 0) at = list.indexOf(here.closest(".card"));
    const next = list[at < 0 ? (by > 0 ? 0 : list.length - 1) : Math.min(list.length - 1, Math.max(0, at + by))];
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "center" });
  };
  const stepFace = (by) => {
    const card = document.activeElement?.closest(".card, .pair");
    if (!card) return;
    const items = all(".tile", card);
    const at = items.indexOf(document.activeElement.closest(".tile"));
    const next = items[Math.min(items.length - 1, Math.max(0, at < 0 ? (by > 0 ? 0 : items.length - 1) : at + by))];
    next?.focus({ preventScroll: true });
    next?.scrollIntoView({ block: "nearest" });
  };
  const facesFor = (card) => {
    const picked = chosen().filter((item) => !card || card.contains(item) || !card.querySelector(".tile[aria-selected=true]"));
    if (picked.length) return [...new Set(picked.map((item) => Number(item.dataset.face)))];
    const focused = document.activeElement?.closest(".tile");
    return focused ? [Number(focused.dataset.face)] : [];
  };

  const ask = (title, what, numeric) => new Promise((resolve) => {
    const dialog = byId("ask"), input = byId("ask-input");
    byId("ask-h").textContent = title;
    byId("ask-what").textContent = what;
    input.value = "";
    input.inputMode = numeric ? "numeric" : "text";
    dialog.returnValue = "cancel";
    dialog.addEventListener("close", () => {
      const text = input.value.trim();
      if (dialog.returnValue !== "ok" || !text) resolve(null);
      else if (!numeric) resolve(text);
      else if (/^\d{1,9}$/.test(text)) resolve(Number(text));
      else { say(`“${text}” is no number of a cluster.`, true); resolve(null); }
    }, { once: true });
    dialog.showModal();
    input.focus();
  });
  const act = async (what, card) => {
    if (!card) { say("Go to a cluster first (j).", true); return; }
    const cluster = Number(card.dataset.cluster);
    const back = document.activeElement;
    if (what === "name") {
      const name = await ask("Name", `Who is cluster ${cluster}?`, false);
      if (name !== null) await decide({ kind: "name", cluster, name });
    } else if (what === "merge") {
      const other = await ask("Merge", `Cluster ${cluster} is the same person as cluster`, true);
      if (other !== null) await decide({ kind: "merge", cluster, other });
    } else {
      const faces = facesFor(card);
      if (!faces.length) { say("Choose faces first: click them, or go to them with the arrow keys and press space.", true); return; }
      if (what === "move") {
        const other = await ask("Move", `${faces.length === 1 ? `Face ${shortOf(faces[0])} belongs` : `${faces.length} faces belong`} to cluster`, true);
        if (other !== null) await decide({ kind: "move", faces, other });
      } else await decide({ kind: what, faces });
    }
    back?.focus?.({ preventScroll: true });
  };
  const answer = async (kind, pair, advance) => {
    if (!pair) { say("Go to a pair first (j).", true); return; }
    if ((await decide({ kind, faces: [Number(pair.dataset.a), Number(pair.dataset.b)] })) && advance) step(1);
  };
  const pairHere = () => {
    const here = current();
    return here?.closest(".pair") || here?.querySelector(":scope > .pair");
  };

  document.addEventListener("click", (event) => {
    const target = event.target;
    const answered = target.closest("[data-answer]");
    if (answered) { answer(answered.dataset.answer, answered.closest(".pair"), false); return; }
    const done = target.closest("[data-do]");
    if (done) { act(done.dataset.do, done.closest(".card")); return; }
    const item = target.closest(".tile");
    if (item) { toggle(item); item.focus({ preventScroll: true }); }
  });
  const ACTIONS = { n: "not-a-face", p: "split", m: "move", g: "merge", e: "name" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, select, textarea")) return;
    const key = event.key;
    const onButton = event.target.closest("button, a, summary");
    if (key === "j") step(1);
    else if (key === "k") step(-1);
    else if (key === "ArrowRight" || key === "ArrowLeft") stepFace(key === "ArrowRight" ? 1 : -1);
    else if (key === " " && !onButton && document.activeElement?.closest(".tile")) toggle(document.activeElement.closest(".tile"));
    else if (key === "s" || key === "d") answer(key === "s" ? "same" : "different", pairHere(), true);
    else if (key in ACTIONS) act(ACTIONS[key], document.activeElement?.closest(".card"));
    else if (key === "u") undo();
    else if (key === "r") regroup();
    else if (key === "/") byId("number").focus();
    else if (key === "?") byId("keys").showModal();
    else return;
    event.preventDefault();
  });
  byId("undo").addEventListener("click", undo);
  byId("regroup").addEventListener("click", regroup);
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("undecided").addEventListener("change", filter);
  document.addEventListener("fcdeploy-found", render);
  // Another tab may have decided something: look when this one is looked at again.
  const refresh = async () => {
    try {
      const answer = await fetch("state");
      if (answer.ok) { const found = await answer.json(); if (found.revision !== revision) { take(found); say(counted()); } }
    } catch { say("The review has ended, or does not answer. Start it again and reload; what was decided is kept.", true); }
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  refresh();
})();
