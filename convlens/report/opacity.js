/* Changes the opacity of maps over photographs. The page reads in full without it. */
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
