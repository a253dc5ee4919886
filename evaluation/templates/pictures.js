"use strict";
// A click on a picture, or Enter, shows it large; another, or Escape, ends that.
{
  const shown = ".pictures img, .prompts img, .timeline img";
  const close = () => document.querySelector(".zoom")?.remove();
  const toggle = image => {
    if (document.querySelector(".zoom")) return close();
    const zoom = document.createElement("div"), large = document.createElement("img");
    zoom.className = "zoom"; large.src = image.src; large.alt = image.alt;
    zoom.append(large); document.body.append(zoom);
  };
  for (const image of document.querySelectorAll(shown)) { image.tabIndex = 0; image.setAttribute("role", "button"); }
  document.addEventListener("click", event => event.target.matches(shown) ? toggle(event.target) : close());
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") close();
    if (event.key === "Enter" && event.target.matches(shown)) toggle(event.target);
  });
}
// Light or dark, where the reader wants another than the system.
{
  const button = document.getElementById("theme");
  const show = theme => {
    document.documentElement.style.colorScheme = theme === "auto" ? "" : theme;
    button.textContent = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" }[theme];
    button.dataset.theme = theme;
  };
  if (button) {
    button.hidden = false;
    show("auto");
    button.addEventListener("click", () => show({ auto: "light", light: "dark", dark: "auto" }[button.dataset.theme]));
  }
}
