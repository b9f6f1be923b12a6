// The picture that is searched with: chosen, pasted or dropped, or that of figures which others are to be like.
"use strict";

function like(hit) {
  alike([hit.pair_id], hit.thumbnail ?? "page/icon.svg");
}

function alike(figures, preview) {
  pick(preview);
  [picture, liked] = [null, figures];
  scrollTo({ top: 0 });
  search();
}

function pick(uri) {
  [picture, liked] = [uri, []];
  const words = document.querySelector("input[name=by][value=words]");
  if (words.checked) document.querySelector("input[name=by][value=image]").checked = true; // a picture has no words
  $("query").value = "";
  chip(uri);
}

function chip(preview) {
  $("preview").src = preview;
  $("chip").hidden = false;
  $("query").placeholder = "Add words, if you like";
}

function unpick() {
  [picture, liked] = [null, []];
  $("preview").removeAttribute("src");
  $("chip").hidden = true;
  $("file").value = "";
  $("query").placeholder = "Describe a figure, or drop a picture";
}

function read(file) {
  if (!file) return;
  const known = $("file").accept.split(","), name = file.name.toLowerCase();
  const fits = (form) => (form.startsWith(".") ? name.endsWith(form) : file.type === form);
  if (!file.type.startsWith("image/") && !known.some(fits)) return note("That is no picture", `${file.name} is of the type ${file.type || "unknown"}. Understood are ${known.filter((form) => form.startsWith(".")).join(" ")}`, "bad");
  const reader = new FileReader();
  reader.addEventListener("load", () => { pick("data:image/any" + reader.result.slice(reader.result.indexOf(";"))); search(); });
  reader.addEventListener("error", () => note("That did not work", `${file.name} cannot be read.`, "bad"));
  reader.readAsDataURL(file);
}

$("file").addEventListener("change", () => read($("file").files[0]));
addEventListener("paste", (event) => { const file = event.clipboardData.files[0]; if (file) { event.preventDefault(); read(file); } });
$("unpick").addEventListener("click", () => { unpick(); $("query").focus(); search(); });

let depth = 0; // dragenter and dragleave come for every child
const veil = (deeper) => (event) => { if (event.dataTransfer.types.includes("Files")) { depth += deeper; $("veil").hidden = depth <= 0; } };
addEventListener("dragenter", veil(1));
addEventListener("dragleave", veil(-1));
addEventListener("dragover", (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
addEventListener("drop", (event) => { if (!event.dataTransfer.files.length) return; event.preventDefault(); depth = 0; $("veil").hidden = true; read(event.dataTransfer.files[0]); });
