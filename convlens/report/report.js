"use strict";
/* Enlarges images, and changes the opacity of maps over photographs. The page reads in full without it. */
const dialog = document.getElementById("enlarged");
function enlarge(image) {
  const copy = (image.closest(".stack") || image).cloneNode(true);
  const caption = document.createElement("p");
  const close = document.createElement("button");
  caption.textContent = image.alt;
  close.textContent = "Close";
  close.className = "close";
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(copy, caption, close);
  dialog.showModal();
}
for (const image of document.querySelectorAll("main img")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.title = "Enlarge";
  button.addEventListener("click", () => enlarge(image));
  image.replaceWith(button);
  button.append(image);
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
dialog.addEventListener("close", () => dialog.replaceChildren());

/* Puts each photograph below the maps over it; only those of its own size lie over it. */
function stack() {
  for (const over of document.querySelectorAll("main img.over")) {
    const photograph = over.closest(".subject").querySelector("img.photograph");
    if (photograph?.naturalWidth !== over.naturalWidth || photograph.naturalHeight !== over.naturalHeight) continue;
    const below = photograph.cloneNode();
    const both = document.createElement("span");
    below.className = "";
    below.alt = "";
    both.className = "stack";
    over.replaceWith(both);
    both.append(below, over);
  }
}
const opacity = document.getElementById("opacity");
const slider = opacity.querySelector("input");
opacity.hidden = false;
slider.addEventListener("input", stack, { once: true });
slider.addEventListener("input", () => {
  document.documentElement.style.setProperty("--overlay", slider.value / 100);
});
