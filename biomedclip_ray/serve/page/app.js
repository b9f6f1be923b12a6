// The page of biomedclip_ray: asks /v1/search and shows figures. Everything from the server is set as text or as an
// image's address, never as markup. The address bar holds the question, so a search can be shared and gone back to.
"use strict";

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const SHOWN = 24;
const COUNTED = 1e6; // figures of an index whose hits are counted by kind and licence with every search
const EXAMPLES = ["fluorescence micrograph of cells", "chest radiograph", "Kaplan-Meier survival curve", "western blot", "histology of tissue"];

let picture = null; // the data URI that is searched for, with the words if there are some
let liked = [];     // or the pair_ids of the figures that others are to be like
let counted = false; // whether a search counts its hits
let following = null; // the cursor of the next page of what is shown
let shown = [];     // the hits on the page, in their order
let asking = null;  // the search under way or shown, which a newer one ends with its pages
let asked = null;   // what it asked for: the field may say something else by now

// ---------------------------------------------------------------- the question

const checked = (name) => [...document.querySelectorAll(`input[name=${name}]:checked`)].map((box) => box.value);
const year = (id) => (/^\d{4}$/.test($(id).value) ? Number($(id).value) : undefined);

function filters() {
  const chosen = { kinds: checked("kind"), licenses: [$("license").value].filter(Boolean), year_from: year("year_from"), year_to: year("year_to") };
  return Object.fromEntries(Object.entries(chosen).filter(([, value]) => value !== undefined && value.length !== 0));
}

function remember() {
  const words = new URLSearchParams();
  if ($("query").value.trim()) words.set("q", $("query").value.trim());
  for (const figure of liked) words.append("like", figure);
  if (checked("by")[0] !== "image") words.set("by", checked("by")[0]);
  for (const kind of checked("kind")) words.append("kind", kind);
  for (const id of ["license", "year_from", "year_to"]) if ($(id).value) words.set(id, $(id).value);
  if ($("group").checked) words.set("group", "article");
  const address = words.size ? `?${words}` : location.pathname;
  if (address !== location.search) history.pushState(null, "", address);
}

function recall() {
  const words = new URLSearchParams(location.search);
  $("query").value = words.get("q") ?? "";
  liked = words.getAll("like");
  if (liked.length) chip("page/icon.svg");
  for (const id of ["license", "year_from", "year_to"]) $(id).value = words.get(id) ?? "";
  $("group").checked = words.get("group") === "article";
  for (const box of document.querySelectorAll("input[name=by]")) box.checked = box.value === (words.get("by") ?? "image");
  for (const box of document.querySelectorAll("input[name=kind]")) box.checked = words.getAll("kind").includes(box.value);
}

// ---------------------------------------------------------------- asking

async function call(path, body, signal) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  const content = await answer.json().catch(() => null);
  if (answer.ok && content) return content;
  if (answer.status === 401) {
    const given = prompt("This server wants an API key. It is kept until this tab is closed.");
    if (given) { sessionStorage.setItem("key", given.trim()); return call(path, body, signal); }
  }
  if (answer.status === 429) throw new Error("The server is busy. Try again in a moment.");
  throw new Error(content?.error?.message ?? `The server answered ${answer.status}.`);
}

function question() {
  const words = $("query").value.trim();
  return [picture && { image: picture }, ...liked.map((figure) => ({ figure })), words && { text: words }].filter(Boolean);
}

function body() {
  return { query: question(), k: SHOWN, by: checked("by")[0], filters: filters(), ...($("group").checked && { group: "article" }) };
}

async function more({ pressed = false } = {}) {
  const button = $("more");
  button.disabled = true;
  try {
    const found = await call("v1/search", { ...asked, cursor: following }, asking.signal);
    const before = $("results").children.length;
    shown.push(...found.data);
    $("results").append(...found.data.map(card));
    fold($("results"));
    follow(found);
    $("status").textContent = `${$("results").children.length} figures.`;
    if (pressed) $("results").children[before]?.querySelector("a[href]")?.focus(); // the keyboard goes on where the new ones begin
  } catch (error) {
    if (error.name !== "AbortError") $("status").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

function follow(found) {
  following = found.next;
  $("more").hidden = !following;
  edge.disconnect(); // anew, or it says nothing of an edge that never left the screen
  edge.observe($("edge"));
}

async function search({ remembered = false } = {}) {
  const query = question();
  asking?.abort();
  if (!remembered) remember();
  following = null;
  if (!query.length) return welcome();
  const mine = (asking = new AbortController());
  asked = body();
  const late = setTimeout(waiting, 120); // an answer that comes at once needs no placeholder
  $("results").setAttribute("aria-busy", "true");
  const began = performance.now();
  try {
    const found = await call("v1/search", { ...asked, facets: counted }, mine.signal);
    if (asking === mine) show(found, performance.now() - began);
  } catch (error) {
    if (error.name !== "AbortError" && asking === mine) note("That did not work", error.message, "bad");
  } finally {
    clearTimeout(late);
    if (asking === mine) $("results").removeAttribute("aria-busy");
  }
}

// ---------------------------------------------------------------- showing

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function note(title, text, name = "", examples = []) {
  $("more").hidden = $("save").hidden = true;
  const box = element("div", "", `note ${name}`);
  box.append(element("h2", title), element("p", text));
  const list = element("ul");
  for (const example of examples) {
    list.append(offer(example, () => { unpick(); $("query").value = example; search(); }));
  }
  if (name === "bad") list.append(offer("Try again", () => search()));
  if (name === "narrow") list.append(offer("Clear the filters", clear));
  if (list.children.length) box.append(list);
  box.setAttribute("role", name === "bad" ? "alert" : "status");
  $("status").textContent = "";
  $("results").replaceChildren(box);
}

function clear() {
  $("group").checked = false;
  for (const id of ["license", "year_from", "year_to"]) $(id).value = "";
  for (const box of document.querySelectorAll("input[name=kind]")) box.checked = false;
  search();
}

function offer(text, action) {
  const button = Object.assign(element("button", text), { type: "button" });
  button.addEventListener("click", action);
  const item = element("li");
  item.append(button);
  return item;
}

function welcome() {
  note("What are you looking for?", "Describe what a figure should show, or drop, paste or choose a picture.", "", EXAMPLES);
}

function waiting() {
  $("status").textContent = "Searching…";
  const ghosts = Array.from({ length: 8 }, () => {
    const ghost = element("div", "", "card ghost");
    const words = element("div", "", "words");
    words.append(element("i"), element("i"), element("i"));
    ghost.append(element("div", "", "picture"), words);
    return ghost;
  });
  $("results").replaceChildren(...ghosts);
}

function show(found, milliseconds) {
  if (!found.data.length) {
    const narrowed = Object.keys(filters()).length > 0;
    return note("No figure found", narrowed ? "No figure passes these filters." : "No caption has these words, and no article this number.", narrowed ? "narrow" : "");
  }
  shown = [...found.data];
  $("save").hidden = false;
  if (found.facets) count(found.facets);
  const cut = found.truncated ? " Only the beginning of the text was read: it is longer than the model's context." : "";
  const figures = found.data.length === 1 ? "One figure" : `${found.data.length} nearest figures`;
  $("status").textContent = `${figures} in ${(milliseconds / 1000).toFixed(2)} s.${cut}`;
  $("results").replaceChildren(...found.data.map(card));
  fold($("results"));
  follow(found);
}

function fold(list) {
  for (const box of list.querySelectorAll(".card")) {
    const caption = box.querySelector(".caption");
    const open = caption.classList.contains("open");
    box.querySelector(".more").hidden = !open && caption.scrollHeight <= caption.clientHeight + 1;
  }
}

function marked(text, spans) {
  const made = document.createDocumentFragment();
  const letters = [...text]; // spans count characters, JavaScript's strings count halves of some
  let at = 0;
  for (const [from, to] of spans) {
    if (from < at) continue;
    made.append(letters.slice(at, from).join(""), element("mark", letters.slice(from, to).join("")));
    at = to;
  }
  made.append(letters.slice(at).join(""));
  return made;
}

function card(hit) {
  const made = $("card").content.cloneNode(true);
  const part = (name) => made.querySelector(name);
  const caption = hit.caption || "(no caption)";
  if (hit.article_url) part(".picture").href = part(".article").href = hit.article_url;
  else part(".article").remove();
  part(".article")?.setAttribute("aria-label", `Article ${hit.article_id} at PubMed Central`);
  if (hit.thumbnail) part("img").src = hit.thumbnail;
  else part(".picture").replaceChildren(element("span", hit.withheld ? `Pictures under the licence ${hit.license || "unknown"} are not shown here: see it in the article.` : "No picture.", "quiet"));
  if (hit.thumbnail) part("img").alt = caption.slice(0, 200);
  part(".caption").append(hit.caption ? marked(caption, hit.highlights) : caption);
  if (hit.figure_kind) part(".tags").append(element("span", hit.figure_kind.replaceAll("_", " "), "kind"));
  part(".tags").append(element("span", hit.license || "licence unknown"));
  part(".source").textContent = [hit.title, hit.journal, hit.year].filter(Boolean).join(" · ") || hit.article_id;
  part(".score").textContent = hit.score.toFixed(3);
  part(".more").addEventListener("click", (event) => {
    const open = event.target.closest(".card").querySelector(".caption").classList.toggle("open");
    event.target.setAttribute("aria-expanded", String(open));
    event.target.textContent = open ? "Show less" : "Show all";
  });
  part(".similar").addEventListener("click", () => like(hit));
  part(".whole").addEventListener("click", () => beside(hit, "The whole figure, with its panels", { figures: [hit.pair_id.split("#")[0]] }));
  part(".same").addEventListener("click", () => beside(hit, "Figures of the same article", { articles: [hit.article_id] }));
  if (hit.more.length) part(".same").textContent = `Same article (${hit.more.length} more hits)`;
  return made;
}

async function beside(hit, title, filters) {
  $("beside-title").textContent = title;
  $("others").replaceChildren(element("p", "Searching…", "quiet"));
  $("beside").showModal();
  try {
    const found = await call("v1/search", { query: { figure: hit.pair_id }, k: SHOWN, filters });
    $("others").replaceChildren(...[hit, ...found.data].map(card));
    fold($("others"));
    for (const button of $("others").querySelectorAll(".whole, .same")) button.remove();
    for (const button of $("others").querySelectorAll(".similar")) button.addEventListener("click", () => $("beside").close());
  } catch (error) {
    $("others").replaceChildren(element("p", error.message));
  }
}

function count(facets) {
  for (const box of document.querySelectorAll("input[name=kind]")) {
    box.parentElement.querySelector("small").textContent = number.format(facets.kinds[box.value] ?? 0);
  }
  for (const option of $("license").options) {
    if (option.value) option.textContent = `${option.value} (${number.format(facets.licenses[option.value] ?? 0)})`;
  }
}

async function holdings() {
  try {
    const { index } = (await call("v1/models")).data[0];
    $("holdings").textContent = `${number.format(index.figures)} figures` + (index.years ? `, ${index.years.join("–")}` : "");
    const kinds = Object.entries(index.kinds).sort((a, b) => b[1] - a[1]);
    counted = index.figures <= COUNTED;
    $("kinds").hidden = kinds.length < 2;
    for (const [kind, count] of kinds) {
      const label = element("label");
      const box = Object.assign(element("input"), { type: "checkbox", name: "kind", value: kind });
      const text = element("span", kind.replaceAll("_", " "));
      text.append(element("small", number.format(count)));
      label.append(box, text);
      $("kinds").append(label);
    }
    for (const name of Object.keys(index.licenses).sort()) $("license").append(new Option(name, name));
  } catch (error) {
    $("holdings").textContent = error.message;
  }
}

// ---------------------------------------------------------------- what the user does

$("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("search").addEventListener("change", (event) => {
  if (["query", "file"].includes(event.target.id)) return;
  if (event.target.value === "words") unpick();
  search();
});
$("more").addEventListener("click", () => more({ pressed: true }));
addEventListener("popstate", () => { unpick(); recall(); search({ remembered: true }); });
const edge = new IntersectionObserver(([seen]) => { if (seen.isIntersecting && following && !$("more").disabled) more(); }, { rootMargin: "400px" });
addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "/" && !typing) { event.preventDefault(); $("query").select(); }
  if (event.key === "Escape" && event.target === $("query")) { unpick(); $("query").value = ""; search(); }
});

addEventListener("DOMContentLoaded", async () => { // all scripts are there
  recall();
  if (location.search) waiting(); else welcome();
  await holdings(); // brings the kinds that an address may name
  if (location.search) { recall(); search({ remembered: true }); }
});
