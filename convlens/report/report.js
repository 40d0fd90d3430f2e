"use strict";
/* Enlarges images. The page reads in full without it. */
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
