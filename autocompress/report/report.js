"use strict";
// Marks of the figures tell their recipe to a pointer, a finger or the arrow keys. Texts are set as text, never as markup.
const texts = JSON.parse(document.getElementById("texts").textContent);
const box = document.getElementById("tip");
const REACH = 24; // pixels between pointer and mark

function distance(mark, x, y) {
  const area = mark.getBoundingClientRect();
  return Math.hypot(Math.max(area.left - x, 0, x - area.right), Math.max(area.top - y, 0, y - area.bottom));
}

function nearest(marks, x, y) {
  let found = null, least = REACH;
  for (const mark of marks) {
    const far = distance(mark, x, y);
    if (far <= least) { found = mark; least = far; } // of equally near ones the last: it is drawn on top
  }
  return found;
}

function hide() {
  box.hidden = true;
  for (const mark of document.querySelectorAll(".on")) mark.classList.remove("on");
}

function show(mark) {
  if (mark.classList.contains("on") && !box.hidden) return;
  hide();
  mark.classList.add("on");
  box.textContent = texts[Number(mark.dataset.tip)];
  box.hidden = false;
  const area = mark.getBoundingClientRect(), width = document.documentElement.clientWidth, high = box.offsetHeight;
  const left = Math.min(Math.max(area.left + area.width / 2 - box.offsetWidth / 2, 8), width - box.offsetWidth - 8);
  const below = area.bottom + 10, above = area.top - 10 - high;
  box.style.left = `${Math.max(left, 8)}px`;
  box.style.top = `${below + high < window.innerHeight || above < 8 ? below : above}px`;
}

for (const figure of document.querySelectorAll("svg.live")) {
  const marks = [...figure.querySelectorAll("[data-tip]")];
  const point = (event) => {
    const mark = nearest(marks, event.clientX, event.clientY);
    if (mark) show(mark); else hide();
  };
  figure.addEventListener("pointermove", point);
  figure.addEventListener("pointerdown", point);
  figure.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hide(); return; }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const place = (mark) => { const area = mark.getBoundingClientRect(); return [area.left + area.width / 2, area.top]; };
    const ordered = marks.map((mark) => [mark, ...place(mark)]).sort((a, b) => a[1] - b[1] || a[2] - b[2]).map(([mark]) => mark);
    const at = ordered.findIndex((mark) => mark.classList.contains("on"));
    show(ordered[at < 0 ? (step > 0 ? 0 : ordered.length - 1) : (at + step + ordered.length) % ordered.length]);
  });
}
document.addEventListener("pointerdown", (event) => { if (!event.target.closest("svg.live")) hide(); });
document.addEventListener("scroll", hide, { passive: true });
