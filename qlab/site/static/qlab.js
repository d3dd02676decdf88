// A live figure without a kernel: its controls swap pictures that were drawn beforehand (qlab/site/figures.py).
"use strict";

function plain(html) {
  const element = document.createElement("div");
  element.innerHTML = html;
  return element.textContent;
}

function start(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const controls = [...figure.querySelectorAll("input, select")];
  const picture = figure.querySelector("img"), said = figure.querySelector(".qlab-said");

  function show() {
    const at = controls.map((control) => Number(control.value));
    const frame = data.frames[at.join(",")];
    if (frame) {
      const [file, text, taken] = frame; // what the figure took for what it was asked for: the last iteration for one beyond it
      taken.forEach((index, i) => { at[i] = index; controls[i].value = index; });
      said.innerHTML = text;
      picture.src = `${data.folder}/${file}`;
      picture.alt = "Live figure: " + at.map((index, i) => `${data.labels[i]} = ${data.words[i][index]}`).join(", ") + ". " + plain(text);
    } else {
      said.textContent = data.missing;
    }
    controls.forEach((control, i) => {
      if (control.type !== "range") return;
      const word = data.words[i][at[i]];
      control.setAttribute("aria-valuetext", word);
      control.nextElementSibling.value = word;
    });
  }

  controls.forEach((control) => control.addEventListener("input", show));
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".qlab-frames").forEach(start));
