// Zero-shot: labels of one's own for the picture or the words in the search field, each with its probability as a bar.
"use strict";

async function classify() {
  const labels = $("labels").value.split("\n").map((label) => label.trim()).filter(Boolean);
  const words = $("query").value.trim();
  const input = picture ? { image: picture } : words;
  const bars = $("bars");
  if (!input) return bars.replaceChildren(element("li", "Choose a picture first, or write some words into the field above."));
  $("classify").disabled = true;
  try {
    const [guess] = (await call("v1/classify", { input, labels, templates: [$("template").value.trim() || "{}"] })).data;
    const ordered = Object.entries(guess.probabilities).sort((a, b) => b[1] - a[1]);
    bars.replaceChildren(...ordered.map(([label, probability]) => {
      const line = element("li");
      const bar = Object.assign(element("progress"), { max: 1, value: probability });
      bar.setAttribute("aria-label", label);
      line.append(element("span", label), bar, element("b", `${(100 * probability).toFixed(1)}%`));
      return line;
    }));
  } catch (error) {
    bars.replaceChildren(element("li", error.message));
  } finally {
    $("classify").disabled = false;
  }
}

$("classify").addEventListener("click", classify);
