// What is shown, as a file: CSV, JSON or BibTeX, each hit with whose it is and under which licence.
"use strict";

const COLUMNS = ["pair_id", "score", "caption", "title", "journal", "year", "license", "doi", "figure_kind", "article_url", "attribution"];

function csv(hits) {
  const cell = (value) => {
    const text = String(value ?? "");
    const safe = typeof value === "string" && /^[=+\-@\t]/.test(text) ? `'${text}` : text; // a spreadsheet would compute it
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [COLUMNS, ...hits.map((hit) => COLUMNS.map((name) => hit[name]))].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function json(hits) {
  return JSON.stringify(hits.map((hit) => Object.fromEntries(COLUMNS.map((name) => [name, hit[name]]))), null, 1) + "\n";
}

function bibtex(hits) {
  const plain = (text) => String(text).replace(/[\\{}]/g, "").replace(/[%&#$_]/g, "\\$&");
  const articles = new Map();
  for (const hit of hits) articles.set(hit.article_id, [...(articles.get(hit.article_id) ?? []), hit]);
  return [...articles].map(([id, figures]) => {
    const [first] = figures;
    const names = figures.map((hit) => hit.pair_id.slice(id.length + 1)).join(", ");
    const fields = { title: first.title, journal: first.journal, year: first.year, doi: first.doi, url: first.article_url, note: `${names}. Licence: ${first.license || "unknown"}` };
    const lines = Object.entries(fields).filter(([, value]) => value).map(([name, value]) => `  ${name} = {${name === "url" || name === "doi" ? value : plain(value)}}`);
    return `@article{${id.replace(/[^\w.-]/g, "")},\n${lines.join(",\n")}\n}\n`;
  }).join("\n");
}

const FORMS = { csv: [csv, "text/csv"], json: [json, "application/json"], bib: [bibtex, "text/plain"] };

for (const button of document.querySelectorAll("#save button")) {
  button.addEventListener("click", () => {
    const [write, type] = FORMS[button.value];
    const address = URL.createObjectURL(new Blob([write(shown)], { type: `${type};charset=utf-8` }));
    Object.assign(document.createElement("a"), { href: address, download: `figures.${button.value}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}
