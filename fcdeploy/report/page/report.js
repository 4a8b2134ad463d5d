// Search over all clusters and faces of a run. All data is in data.js; nothing is fetched.
"use strict";
(() => {
  const data = window.fcdeployData;
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const labels = new Int32Array(bytes(data.labels));
  const confidence = new Uint16Array(bytes(data.confidence));
  const clusterFlags = new Uint8Array(bytes(data.flags));
  const sprites = new Int32Array(bytes(data.sprites));
  const pictured = new Uint8Array(bytes(data.pictured));
  const measures = {};
  for (const name of ["weakest", "cohesion", "similarity"]) measures[name] = new Uint16Array(bytes(data[name]));
  const count = clusterFlags.length;
  const SHOWN = 200;
  const review = document.body.hasAttribute("data-review");

  // Rows by cluster, as offsets, made when somebody first asks.
  let offsets = null;
  let rows = null;
  const group = () => {
    if (offsets) return;
    offsets = new Int32Array(count + 1);
    for (const label of labels) if (label >= 0) offsets[label + 1]++;
    for (let c = 0; c < count; c++) offsets[c + 1] += offsets[c];
    const next = offsets.slice(0, count);
    rows = new Int32Array(offsets[count]);
    labels.forEach((label, row) => { if (label >= 0) rows[next[label]++] = row; });
  };
  const real = (value) => (value ? ((value - 1) / 65534 * 2 - 1).toFixed(3) : "–");
  const nameOf = (face) => (data.ids ? data.ids[face] : String(face));
  const shortOf = (face) => { const name = nameOf(face); return name.slice(name.replace(/\/+$/, "").lastIndexOf("/") + 1); };
  const whole = (value) => value.toLocaleString("en");
  const flagsOf = (c) => data.flagNames.filter((_, bit) => clusterFlags[c] & (1 << bit));

  const made = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const spriteOf = (face) => {
    let low = 0, high = sprites.length;
    while (low < high) { const mid = (low + high) >> 1; if (sprites[mid] < face) low = mid + 1; else high = mid; }
    return sprites[low] === face && pictured[low] ? low : -1;
  };
  const tile = (face) => {
    const item = made("li", "tile");
    item.dataset.face = face;
    if (review) item.tabIndex = -1;
    const at = spriteOf(face);
    if (at >= 0) {
      const inner = at % 256;
      const picture = made("i", `t s${Math.floor(at / 256)} x${inner % 16} y${Math.floor(inner / 16)}`);
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `Face ${nameOf(face)}`);
      item.append(picture);
    } else if (review) {
      const picture = made("img", "t");
      picture.src = `face/${face}`;
      picture.alt = `Face ${nameOf(face)}`;
      picture.loading = "lazy";
      item.append(picture);
    } else if (data.images) {
      const picture = made("i", "t none");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `Face ${nameOf(face)}, no picture here`);
      item.append(picture);
    }
    if (data.ids) item.title = nameOf(face);
    item.append(made("span", "", shortOf(face)));
    return item;
  };
  const card = (c, face) => {
    group();
    const size = offsets[c + 1] - offsets[c];
    const article = made("article", "card");
    article.dataset.cluster = c;
    article.dataset.size = size;
    article.dataset.flags = flagsOf(c).join(" ");
    if (review) article.tabIndex = -1;
    const head = made("header");
    head.append(made("h3", "", `Cluster ${c}`), made("span", "size", `${whole(size)} ${size === 1 ? "face" : "faces"}`));
    for (const flag of flagsOf(c)) head.append(made("span", "flag", flag));
    head.append(made("span", "said"));
    const list = made("dl", "measures");
    const entry = (name, value) => {
      const line = made("div");
      line.append(made("dt", "", name), made("dd", "", value));
      list.append(line);
    };
    for (const [name, text] of [["weakest", "weakest link"], ["cohesion", "cohesion"], ["similarity", "similarity"]])
      entry(text, real(measures[name][c]));
    if (face !== undefined) entry(`confidence of face ${nameOf(face)}`, real(confidence[face]));
    const faces = made("ul", "faces");
    const members = Array.from(rows.subarray(offsets[c], Math.min(offsets[c + 1], offsets[c] + SHOWN)));
    if (face !== undefined && !members.includes(face)) members.unshift(face);
    for (const member of members) {
      const item = tile(member);
      if (member === face) item.classList.add("odd");
      faces.append(item);
    }
    article.append(head, list, faces);
    if (members.length < size) article.append(made("p", "more", `${members.length} of ${whole(size)} faces, by number`));
    if (review) {
      const actions = made("p", "actions");
      for (const [name, text] of [["split", "Split off"], ["move", "Move"], ["merge", "Merge"], ["name", "Name"], ["not-a-face", "Not a face"]]) {
        const button = made("button", "", text);
        button.type = "button";
        button.dataset.do = name;
        actions.append(button);
      }
      article.append(actions);
    }
    return article;
  };

  const found = document.getElementById("found");
  const show = (...nodes) => { found.replaceChildren(...nodes); document.dispatchEvent(new Event("fcdeploy-found")); };
  const listed = (flag, least) => {
    group();
    const bit = data.flagNames.indexOf(flag);
    const chosen = [];
    for (let c = 0; c < count; c++)
      if (offsets[c + 1] - offsets[c] >= least && (bit < 0 || clusterFlags[c] & (1 << bit))) chosen.push(c);
    chosen.sort((a, b) => offsets[b + 1] - offsets[b] - (offsets[a + 1] - offsets[a]) || a - b);
    const list = made("ul", "list");
    for (const c of chosen.slice(0, SHOWN)) {
      const item = made("li");
      const button = made("button", "linkish", `Cluster ${c}`);
      button.type = "button";
      button.addEventListener("click", () => show(card(c), list));
      item.append(button, ` ${whole(offsets[c + 1] - offsets[c])} faces ${flagsOf(c).join(", ")}`);
      list.append(item);
    }
    show(made("p", "lead", `${whole(chosen.length)} clusters${chosen.length > SHOWN ? `, the ${SHOWN} largest of them` : ""}`), list);
  };
  const say = (text) => show(made("p", "note", text));
  const find = () => {
    const asked = document.getElementById("number").value.trim();
    const face = document.getElementById("kind").value === "face";
    const text = face && data.ids ? asked : asked.replace(/[,\s]/g, "");
    const flag = document.getElementById("by-flag").value;
    const least = Math.max(1, Number(document.getElementById("least").value) || 1);
    if (!text) { listed(flag, least); return; }
    const number = face && data.ids ? data.ids.indexOf(text) : Number(text);
    const limit = face ? labels.length : count;
    if (number < 0) say("No face has this id.");
    else if (!(face && data.ids) && !/^\d+$/.test(text) || number >= limit) {
      say(`No such ${face ? "face" : "cluster"}; numbers go from 0 to ${whole(limit - 1)}.`);
    } else if (!face) show(card(number));
    else if (labels[number] < 0) {
      const faces = made("ul", "faces");
      faces.append(tile(number));
      show(made("p", "note", `Face ${nameOf(number)} is in no cluster.`), faces);
    } else show(card(labels[number], number));
  };
  document.getElementById("find").addEventListener("submit", (event) => { event.preventDefault(); find(); });
  const menu = document.querySelector(".menu");
  menu.addEventListener("click", (event) => { if (event.target.closest("a")) menu.open = false; });
  window.fcdeployPage = { labels, card, tile, nameOf, shortOf, grouped: data.grouped };
})();
